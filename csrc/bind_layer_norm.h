// layer_norm over torch tensors, once for all devices, and its derivative.
#pragma once

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd.h"
#include "bind_norm.h"

namespace refimpl::bind {

struct LayerNormCall : NormCall<LayerNormProblem> {
  LayerNormCall(const Tensor& x_, const Tensor& weight_, const Tensor& bias_, double eps) {
    TORCH_CHECK_VALUE(x_.dim() >= 1, "x must have shape [..., C], got ", x_.sizes());
    take(x_, -1, weight_, bias_, eps, at::MemoryFormat::Contiguous);
    statistics = x_.sizes().slice(0, size_t(x_.dim()) - 1).vec();
    p.width = x_.size(-1);
    p.rows = p.width == 0 ? 0 : x_.numel() / p.width;
  }

  template <class Backend>
  void run() {
    p.partial = partials(Backend::layer_norm_partials(p));
    Backend::layer_norm(p);
  }
};

template <class Backend>
ThreeTensors layer_norm_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  const typename Backend::Guard guard(x.device());
  LayerNormCall call(x, weight, bias, eps);
  return norm_forward<Backend>(call);
}

template <class Backend>
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return std::get<0>(layer_norm_forward<Backend>(x, weight, bias, eps));
}

template <class Backend>
ThreeTensors layer_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                 const Tensor& bias, const Tensor& mean, const Tensor& deviation,
                                 double eps) {
  const typename Backend::Guard guard(x.device());
  LayerNormCall call(x, weight, bias, eps);
  return norm_backward<Backend>(call, "layer_norm_forward", grad, weight, bias, mean, deviation);
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
  static auto op = find_op<ThreeTensors(const Tensor&, const Tensor&, const Tensor&, double)>(
      "refimpl::layer_norm_forward");
  return op;
}

inline auto& call_layer_norm_backward() {
  static auto op =
      find_op<ThreeTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const Tensor&, double)>("refimpl::layer_norm_backward");
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

inline ThreeTensors layer_norm_backward_autograd(const Tensor& grad, const Tensor& x, const Tensor& weight,
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
