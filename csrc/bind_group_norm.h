// group_norm_silu over torch tensors, once for all devices, and its derivative.
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

// The tensors of one call, checked and in one memory order; owns the converted copies.
struct GroupNormCall {
  GroupNormProblem p = {};
  at::MemoryFormat order;
  at::ScalarType wide;  // of statistics and parameters
  Tensor x, weight, bias, scratch;

  GroupNormCall(const Tensor& x_, const Tensor& weight_, const Tensor& bias_, int64_t groups, double eps) {
    check_image("x", x_);
    TORCH_CHECK_VALUE(groups > 0 && x_.size(1) % groups == 0, "groups = ", groups, " does not divide the ",
                      x_.size(1), " channels of x");
    for (const auto& [name, parameter] : {std::pair("weight", &weight_), std::pair("bias", &bias_)})
      TORCH_CHECK_VALUE(
          parameter->dim() == 1 && parameter->size(0) == x_.size(1) && parameter->device() == x_.device(),
          name, " has shape ", parameter->sizes(), " on ", parameter->device(), " and x ", x_.sizes(), " on ",
          x_.device(), ": give one per channel");
    p.dtype = dtype_of("x", x_);
    dtype_of("weight", weight_), dtype_of("bias", bias_);
    wide = p.dtype == DType::f64 ? at::kDouble : at::kFloat;
    order = order_of(x_);
    x = x_.contiguous(order);
    weight = converted(weight_, wide, at::MemoryFormat::Contiguous);
    bias = converted(bias_, wide, at::MemoryFormat::Contiguous);
    p.layout = layout_of(x_, order);
    p.groups = groups;
    p.eps = eps;
    p.x = x.const_data_ptr();
    p.weight = weight.const_data_ptr();
    p.bias = bias.const_data_ptr();
  }

  template <class Backend>
  void run() {
    scratch = at::empty({Backend::group_norm_partials(p)}, x.options().dtype(at::kDouble));
    p.partial = scratch.mutable_data_ptr();
    Backend::group_norm_silu(p);
  }
};

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> group_norm_silu_forward(const Tensor& x, const Tensor& weight,
                                                           const Tensor& bias, int64_t groups, double eps) {
  const typename Backend::Guard guard(x.device());
  GroupNormCall call(x, weight, bias, groups, eps);
  const auto options = x.options().dtype(call.wide);
  Tensor y = Backend::empty(x.sizes(), x.options(), call.order);
  Tensor mean = at::empty({x.size(0), groups}, options), deviation = at::empty({x.size(0), groups}, options);
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
Tensor group_norm_silu(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t groups,
                       double eps) {
  return std::get<0>(group_norm_silu_forward<Backend>(x, weight, bias, groups, eps));
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> group_norm_silu_backward(const Tensor& grad, const Tensor& x,
                                                            const Tensor& weight, const Tensor& bias,
                                                            const Tensor& mean, const Tensor& deviation,
                                                            int64_t groups, double eps) {
  const typename Backend::Guard guard(x.device());
  GroupNormCall call(x, weight, bias, groups, eps);
  check_like("grad", grad, "x", x);
  for (const Tensor* statistic : {&mean, &deviation})
    TORCH_CHECK_VALUE(statistic->sizes() == at::IntArrayRef({x.size(0), groups}) &&
                          statistic->scalar_type() == call.wide && statistic->device() == x.device(),
                      "mean and deviation must be what group_norm_silu_forward returned for this x");
  const Tensor incoming = converted(grad, x.scalar_type(), call.order);
  const Tensor means = mean.contiguous(), deviations = deviation.contiguous();
  Tensor by_x = Backend::empty(x.sizes(), x.options(), call.order);
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
void register_group_norm(torch::Library& m) {
  m.impl("group_norm_silu", &group_norm_silu<Backend>);
  m.impl("group_norm_silu_forward", &group_norm_silu_forward<Backend>);
  m.impl("group_norm_silu_backward", &group_norm_silu_backward<Backend>);
}

// ---- Autograd: x and the statistics of its groups are kept; z and its SiLU are computed again ----

using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

inline auto& call_group_norm_silu() {
  static auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t, double)>(
      "refimpl::group_norm_silu");
  return op;
}

inline auto& call_group_norm_silu_forward() {
  static auto op = find_op<ThreeTensors(const Tensor&, const Tensor&, const Tensor&, int64_t, double)>(
      "refimpl::group_norm_silu_forward");
  return op;
}

inline auto& call_group_norm_silu_backward() {
  static auto op =
      find_op<ThreeTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const Tensor&, int64_t, double)>("refimpl::group_norm_silu_backward");
  return op;
}

// The gradients as a function of their arguments; differentiating it raises.
struct GroupNormGradient : torch::autograd::Function<GroupNormGradient> {
  static variable_list forward(AutogradContext*, const Tensor& grad, const Tensor& x, const Tensor& weight,
                               const Tensor& bias, const Tensor& mean, const Tensor& deviation,
                               int64_t groups, double eps) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [by_x, by_weight, by_bias] =
        call_group_norm_silu_backward().call(grad, x, weight, bias, mean, deviation, groups, eps);
    return {by_x, by_weight, by_bias};
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false, "group_norm_silu of the backend 'kernel' can be differentiated once, not twice: ",
        "choose the backend 'reference' for second derivatives");
  }
};

inline ThreeTensors group_norm_silu_backward_autograd(const Tensor& grad, const Tensor& x,
                                                      const Tensor& weight, const Tensor& bias,
                                                      const Tensor& mean, const Tensor& deviation,
                                                      int64_t groups, double eps) {
  const auto slopes = GroupNormGradient::apply(grad, x, weight, bias, mean, deviation, groups, eps);
  return {slopes[0], slopes[1], slopes[2]};
}

struct GroupNormSilu : torch::autograd::Function<GroupNormSilu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        int64_t groups, double eps) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [y, mean, deviation] = call_group_norm_silu_forward().call(x, weight, bias, groups, eps);
    ctx->save_for_backward({x, weight, bias, mean, deviation});
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["eps"] = eps;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    auto [by_x, by_weight, by_bias] = call_group_norm_silu_backward().call(
        grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], ctx->saved_data["groups"].toInt(),
        ctx->saved_data["eps"].toDouble());
    return {by_x, by_weight, by_bias, Tensor(), Tensor()};
  }
};

inline Tensor group_norm_silu_autograd(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                       int64_t groups, double eps) {
  if (at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad() || bias.requires_grad()))
    return GroupNormSilu::apply(x, weight, bias, groups, eps);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_group_norm_silu().call(x, weight, bias, groups, eps);
}

inline void register_group_norm_autograd(torch::Library& m) {
  m.impl("group_norm_silu", &group_norm_silu_autograd);
  m.impl("group_norm_silu_backward", &group_norm_silu_backward_autograd);
}

}  // namespace refimpl::bind
