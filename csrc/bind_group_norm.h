// group_norm_silu over torch tensors, once for all devices, and its derivative.
#pragma once

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd.h"
#include "bind_norm.h"

namespace refimpl::bind {

struct GroupNormCall : NormCall<GroupNormProblem> {
  GroupNormCall(const Tensor& x_, const Tensor& weight_, const Tensor& bias_, int64_t groups, double eps) {
    check_image("x", x_);
    TORCH_CHECK_VALUE(groups > 0 && x_.size(1) % groups == 0, "groups = ", groups, " does not divide the ",
                      x_.size(1), " channels of x");
    take(x_, 1, weight_, bias_, eps, order_of(x_));
    statistics = {x_.size(0), groups};
    p.layout = layout_of(x_, order);
    p.groups = groups;
  }

  template <class Backend>
  void run() {
    p.partial = partials(Backend::group_norm_partials(p));
    Backend::group_norm_silu(p);
  }
};

template <class Backend>
ThreeTensors group_norm_silu_forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                     int64_t groups, double eps) {
  const typename Backend::Guard guard(x.device());
  GroupNormCall call(x, weight, bias, groups, eps);
  return norm_forward<Backend>(call);
}

template <class Backend>
Tensor group_norm_silu(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t groups,
                       double eps) {
  return std::get<0>(group_norm_silu_forward<Backend>(x, weight, bias, groups, eps));
}

template <class Backend>
ThreeTensors group_norm_silu_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                      const Tensor& bias, const Tensor& mean, const Tensor& deviation,
                                      int64_t groups, double eps) {
  const typename Backend::Guard guard(x.device());
  GroupNormCall call(x, weight, bias, groups, eps);
  return norm_backward<Backend>(call, "group_norm_silu_forward", grad, weight, bias, mean, deviation);
}

template <class Backend>
void register_group_norm(torch::Library& m) {
  m.impl("group_norm_silu", &group_norm_silu<Backend>);
  m.impl("group_norm_silu_forward", &group_norm_silu_forward<Backend>);
  m.impl("group_norm_silu_backward", &group_norm_silu_backward<Backend>);
}

// ---- Autograd: x and the statistics of its groups are kept; z and its SiLU are computed again ----

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
