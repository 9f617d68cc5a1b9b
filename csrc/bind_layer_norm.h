// layer_norm over torch tensors, once for all devices, and its derivative.
#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <utility>

#include "autograd.h"
#include "inputs.h"

namespace refimpl::bind {

// The tensors of one call, checked and contiguous; owns the converted copies.
struct LayerNormCall {
  LayerNormProblem p = {};
  at::ScalarType wide;  // of statistics and parameters
  Tensor x, weight, bias, scratch;

  LayerNormCall(const Tensor& x_, const Tensor& weight_, const Tensor& bias_, double eps) {
    TORCH_CHECK_VALUE(x_.dim() >= 1, "x must have shape [..., C], got ", x_.sizes());
    for (const auto& [name, parameter] : {std::pair("weight", &weight_), std::pair("bias", &bias_)})
      TORCH_CHECK_VALUE(
          parameter->dim() == 1 && parameter->size(0) == x_.size(-1) && parameter->device() == x_.device(),
          name, " has shape ", parameter->sizes(), " on ", parameter->device(), " and x ", x_.sizes(), " on ",
          x_.device(), ": give one per channel, the last dimension of x");
    p.dtype = dtype_of("x", x_);
    dtype_of("weight", weight_), dtype_of("bias", bias_);
    wide = p.dtype == DType::f64 ? at::kDouble : at::kFloat;
    x = x_.contiguous();
    weight = converted(weight_, wide, at::MemoryFormat::Contiguous);
    bias = converted(bias_, wide, at::MemoryFormat::Contiguous);
    p.width = x_.size(-1);
    p.rows = p.width == 0 ? 0 : x_.numel() / p.width;
    p.eps = eps;
    p.x = x.const_data_ptr();
    p.weight = weight.const_data_ptr();
    p.bias = bias.const_data_ptr();
  }

  at::IntArrayRef leading() const { return x.sizes().slice(0, size_t(x.dim()) - 1); }

  template <class Backend>
  void run() {
    scratch = at::empty({Backend::layer_norm_partials(p)}, x.options().dtype(at::kDouble));
    p.partial = scratch.mutable_data_ptr();
    Backend::layer_norm(p);
  }
};

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(const Tensor& x, const Tensor& weight,
                                                      const Tensor& bias, double eps) {
  const typename Backend::Guard guard(x.device());
  LayerNormCall call(x, weight, bias, eps);
  const auto options = x.options().dtype(call.wide);
  Tensor y = Backend::empty(x.sizes(), x.options(), at::MemoryFormat::Contiguous);
  Tensor mean = at::empty(call.leading(), options), deviation = at::empty(call.leading(), options);
  call.p.out = y.mutable_data_ptr();
  call.p.mean = mean.mutable_data_ptr();
  call.p.deviation = deviation.mutable_data_ptr();
  if (y.numel())
    call.run<Backend>();
  else
    mean.zero_(), deviation.fill_(1 / std::sqrt(eps));
  return {y, mean, deviation};
}

template <class Backend>
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return std::get<0>(layer_norm_forward<Backend>(x, weight, bias, eps));
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& grad, const Tensor& x,
                                                       const Tensor& weight, const Tensor& bias,
                                                       const Tensor& mean, const Tensor& deviation,
                                                       double eps) {
  const typename Backend::Guard guard(x.device());
  LayerNormCall call(x, weight, bias, eps);
  check_like("grad", grad, "x", x);
  for (const Tensor* statistic : {&mean, &deviation})
    TORCH_CHECK_VALUE(statistic->sizes() == call.leading() && statistic->scalar_type() == call.wide &&
                          statistic->device() == x.device(),
                      "mean and deviation must be what layer_norm_forward returned for this x");
  const Tensor incoming = converted(grad, x.scalar_type(), at::MemoryFormat::Contiguous);
  const Tensor means = mean.contiguous(), deviations = deviation.contiguous();
  Tensor by_x = Backend::empty(x.sizes(), x.options(), at::MemoryFormat::Contiguous);
  Tensor by_weight = at::zeros_like(call.weight), by_bias = at::zeros_like(call.bias);
  call.p.incoming = incoming.const_data_ptr();
  call.p.mean = means.mutable_data_ptr();  // only read going back
  call.p.deviation = deviations.mutable_data_ptr();
  call.p.out = by_x.mutable_data_ptr();
  call.p.by_weight = by_weight.mutable_data_ptr();
  call.p.by_bias = by_bias.mutable_data_ptr();
  if (by_x.numel()) call.run<Backend>();
  return {by_x, by_weight.to(weight.scalar_type()), by_bias.to(bias.scalar_type())};
}

template <class Backend>
void register_layer_norm(torch::Library& m) {
  m.impl("layer_norm", &layer_norm<Backend>);
  m.impl("layer_norm_forward", &layer_norm_forward<Backend>);
  m.impl("layer_norm_backward", &layer_norm_backward<Backend>);
}

// ---- Autograd: x and the statistics of its rows are kept ----

inline auto& call_layer_norm() {
  static auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, double)>("refimpl::layer_norm");
  return op;
}

inline auto& call_layer_norm_forward() {
  static auto op =
      find_op<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, double)>(
          "refimpl::layer_norm_forward");
  return op;
}

inline auto& call_layer_norm_backward() {
  static auto op = find_op<std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, double)>(
      "refimpl::layer_norm_backward");
  return op;
}

// The gradients as a function of their arguments; differentiating it raises.
struct LayerNormGradient : torch::autograd::Function<LayerNormGradient> {
  static variable_list forward(AutogradContext*, const Tensor& grad, const Tensor& x, const Tensor& weight,
                               const Tensor& bias, const Tensor& mean, const Tensor& deviation, double eps) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [by_x, by_weight, by_bias] =
        call_layer_norm_backward().call(grad, x, weight, bias, mean, deviation, eps);
    return {by_x, by_weight, by_bias};
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false,
                                "layer_norm of the backend 'kernel' can be differentiated once, not twice: ",
                                "choose the backend 'reference' for second derivatives");
  }
};

inline std::tuple<Tensor, Tensor, Tensor> layer_norm_backward_autograd(const Tensor& grad, const Tensor& x,
                                                                       const Tensor& weight,
                                                                       const Tensor& bias, const Tensor& mean,
                                                                       const Tensor& deviation, double eps) {
  const auto slopes = LayerNormGradient::apply(grad, x, weight, bias, mean, deviation, eps);
  return {slopes[0], slopes[1], slopes[2]};
}

struct LayerNorm : torch::autograd::Function<LayerNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        double eps) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [y, mean, deviation] = call_layer_norm_forward().call(x, weight, bias, eps);
    ctx->save_for_backward({x, weight, bias, mean, deviation});
    ctx->saved_data["eps"] = eps;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto [by_x, by_weight, by_bias] = call_layer_norm_backward().call(
        grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], ctx->saved_data["eps"].toDouble());
    return {by_x, by_weight, by_bias, Tensor()};
  }
};

inline Tensor layer_norm_autograd(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  if (at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad() || bias.requires_grad()))
    return LayerNorm::apply(x, weight, bias, eps);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_layer_norm().call(x, weight, bias, eps);
}

inline void register_layer_norm_autograd(torch::Library& m) {
  m.impl("layer_norm", &layer_norm_autograd);
  m.impl("layer_norm_backward", &layer_norm_backward_autograd);
}

}  // namespace refimpl::bind
