// Autograd formulas of the ops, registered once for all devices; they call the ops below the autograd key.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace refimpl::bind {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline auto& call_add_noise() {
  static auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&)>("refimpl::add_noise");
  return op;
}

inline auto& call_add_keyed_noise() {
  static auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, double)>(
      "refimpl::add_keyed_noise");
  return op;
}

using OptionalTensor = std::optional<Tensor>;

inline auto& call_v_loss() {
  static auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                  const Tensor&, std::optional<double>)>("refimpl::v_loss");
  return op;
}

inline auto& call_keyed_v_loss() {
  static auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                  const Tensor&, double, std::optional<double>)>("refimpl::keyed_v_loss");
  return op;
}

inline auto& call_v_loss_forward() {
  static auto op = find_op<std::tuple<Tensor, Tensor>(
      const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&,
      const Tensor&, const Tensor&, double, std::optional<double>)>("refimpl::v_loss_forward");
  return op;
}

inline auto& call_v_loss_backward() {
  static auto op = find_op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                  const Tensor&, const Tensor&, const Tensor&, double, const Tensor&)>(
      "refimpl::v_loss_backward");
  return op;
}

inline auto& call_v_loss_correct_() {
  static auto op = find_op<void(Tensor, const Tensor&, const Tensor&, const OptionalTensor&,
                                const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&, double,
                                const Tensor&, std::optional<double>)>("refimpl::v_loss_correct_");
  return op;
}

// ---- add_noise: ∂x_t/∂x0 = alpha, ∂x_t/∂eps = sigma ----

inline void check_constant(const char* op, const char* name, const Tensor& scalars) {
  TORCH_CHECK_VALUE(!scalars.requires_grad(), op, " has no derivative by ", name,
                    ": detach it, or choose the backend 'reference'");
}

inline Tensor scaled(const Tensor& grad, const Tensor& coefficient, at::ScalarType dtype) {
  const auto wide = grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::mul(grad.to(wide), coefficient.to(grad.device(), wide).view({-1, 1, 1, 1})).to(dtype);
}

struct AddNoise : torch::autograd::Function<AddNoise> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x0, const Tensor& eps, const Tensor& alpha,
                        const Tensor& sigma) {
    ctx->save_for_backward({alpha, sigma});
    ctx->saved_data["eps_dtype"] = int64_t(eps.scalar_type());
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_add_noise().call(x0, eps, alpha, sigma);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto eps_dtype = at::ScalarType(ctx->saved_data["eps_dtype"].toInt());
    Tensor by_x0, by_eps;
    if (ctx->needs_input_grad(0)) by_x0 = scaled(grads[0], saved[0], grads[0].scalar_type());
    if (ctx->needs_input_grad(1)) by_eps = scaled(grads[0], saved[1], eps_dtype);
    return {by_x0, by_eps, Tensor(), Tensor()};
  }
};

inline Tensor add_noise_autograd(const Tensor& x0, const Tensor& eps, const Tensor& alpha,
                                 const Tensor& sigma) {
  if (at::GradMode::is_enabled()) {
    check_constant("add_noise", "alpha", alpha);
    check_constant("add_noise", "sigma", sigma);
    if (x0.requires_grad() || eps.requires_grad()) return AddNoise::apply(x0, eps, alpha, sigma);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_add_noise().call(x0, eps, alpha, sigma);
}

struct AddKeyedNoise : torch::autograd::Function<AddKeyedNoise> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x0, const Tensor& key, const Tensor& alpha,
                        const Tensor& sigma, double offset) {
    ctx->save_for_backward({alpha});
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_add_keyed_noise().call(x0, key, alpha, sigma, offset);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor alpha = ctx->get_saved_variables()[0];
    return {scaled(grads[0], alpha, grads[0].scalar_type()), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

inline Tensor add_keyed_noise_autograd(const Tensor& x0, const Tensor& key, const Tensor& alpha,
                                       const Tensor& sigma, double offset) {
  if (at::GradMode::is_enabled()) {
    check_constant("add_keyed_noise", "alpha", alpha);
    check_constant("add_keyed_noise", "sigma", sigma);
    if (x0.requires_grad()) return AddKeyedNoise::apply(x0, key, alpha, sigma, offset);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_add_keyed_noise().call(x0, key, alpha, sigma, offset);
}

// ---- v_loss: differentiable in prediction, once ----

// The gradient as a function of prediction and the incoming gradient; differentiating it raises.
struct LossGradient : torch::autograd::Function<LossGradient> {
  static Tensor forward(AutogradContext*, const Tensor& prediction, const Tensor& x0,
                        const OptionalTensor& eps, const OptionalTensor& key, const Tensor& alpha,
                        const Tensor& sigma, const Tensor& weight, double offset, const Tensor& incoming) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_v_loss_backward().call(prediction, x0, eps, key, alpha, sigma, weight, offset, incoming);
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false,
                                "v_loss of the backend 'kernel' can be differentiated once, not twice: ",
                                "choose the backend 'reference' for second derivatives");
  }
};

inline Tensor v_loss_backward_autograd(const Tensor& prediction, const Tensor& x0, const OptionalTensor& eps,
                                       const OptionalTensor& key, const Tensor& alpha, const Tensor& sigma,
                                       const Tensor& weight, double offset, const Tensor& incoming) {
  return LossGradient::apply(prediction, x0, eps, key, alpha, sigma, weight, offset, incoming);
}

// The loss's gradient is linear in the incoming one, so the forward pass already computes it, for the
// incoming gradient that the caller expects. The first backward pass returns that buffer, recomputing only
// the samples whose incoming gradient differs; so the result never depends on the expectation.
struct Loss : torch::autograd::Function<Loss> {
  static Tensor forward(AutogradContext* ctx, const Tensor& prediction, const Tensor& x0,
                        const OptionalTensor& eps, const OptionalTensor& key, const Tensor& alpha,
                        const Tensor& sigma, const Tensor& weight, double offset,
                        std::optional<double> expected) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [loss, grad] =
        call_v_loss_forward().call(prediction, x0, eps, key, alpha, sigma, weight, offset, expected);
    ctx->save_for_backward({prediction, x0, eps ? *eps : *key, alpha, sigma, weight});
    ctx->saved_data["keyed"] = key.has_value();
    ctx->saved_data["offset"] = offset;
    ctx->saved_data["expected"] = expected;
    ctx->saved_data["grad"] = grad;
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const bool keyed = ctx->saved_data["keyed"].toBool();
    const OptionalTensor eps = keyed ? OptionalTensor() : OptionalTensor(saved[2]);
    const OptionalTensor key = keyed ? OptionalTensor(saved[2]) : OptionalTensor();
    const double offset = ctx->saved_data["offset"].toDouble();
    const auto buffer = ctx->saved_data.find("grad");
    Tensor grad;
    if (at::GradMode::is_enabled() || buffer == ctx->saved_data.end()) {
      grad = call_v_loss_backward().call(saved[0], saved[1], eps, key, saved[3], saved[4], saved[5], offset,
                                         grads[0]);
    } else {
      grad = buffer->second.toTensor();
      ctx->saved_data.erase(buffer);
      const at::AutoDispatchBelowADInplaceOrView below;
      call_v_loss_correct_().call(grad, saved[0], saved[1], eps, key, saved[3], saved[4], saved[5], offset,
                                  grads[0], ctx->saved_data["expected"].toOptional<double>());
    }
    return {grad, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

inline Tensor v_loss_autograd(const Tensor& prediction, const Tensor& x0, const Tensor& eps,
                              const Tensor& alpha, const Tensor& sigma, const Tensor& weight,
                              std::optional<double> expected) {
  if (at::GradMode::is_enabled() && prediction.requires_grad())
    return Loss::apply(prediction, x0.detach(), OptionalTensor(eps.detach()), OptionalTensor(),
                       alpha.detach(), sigma.detach(), weight.detach(), 0.0, expected);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_v_loss().call(prediction, x0, eps, alpha, sigma, weight, expected);
}

inline Tensor keyed_v_loss_autograd(const Tensor& prediction, const Tensor& x0, const Tensor& key,
                                    const Tensor& alpha, const Tensor& sigma, const Tensor& weight,
                                    double offset, std::optional<double> expected) {
  if (at::GradMode::is_enabled() && prediction.requires_grad())
    return Loss::apply(prediction, x0.detach(), OptionalTensor(), OptionalTensor(key), alpha.detach(),
                       sigma.detach(), weight.detach(), offset, expected);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_keyed_v_loss().call(prediction, x0, key, alpha, sigma, weight, offset, expected);
}

// Statistics, not part of the autograd graph: the reference detaches its input too.
inline std::tuple<Tensor, Tensor, Tensor> channel_moments_autograd(const Tensor& x) {
  static auto op = find_op<std::tuple<Tensor, Tensor, Tensor>(const Tensor&)>("refimpl::channel_moments");
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(x);
}

inline void register_autograd(torch::Library& m) {
  m.impl("add_noise", &add_noise_autograd);
  m.impl("add_keyed_noise", &add_keyed_noise_autograd);
  m.impl("v_loss", &v_loss_autograd);
  m.impl("keyed_v_loss", &keyed_v_loss_autograd);
  m.impl("v_loss_backward", &v_loss_backward_autograd);
  m.impl("channel_moments", &channel_moments_autograd);
}

}  // namespace refimpl::bind
