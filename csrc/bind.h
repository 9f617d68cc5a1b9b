// The ops over torch tensors, once for all devices: check, convert to one memory format, allocate, run.
//
// A Backend defines how a problem runs on its device (Backend::noise, ::loss, ::moments and their scratch
// sizes) and where the memory of large results comes from (Backend::empty).
#pragma once

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "inputs.h"

namespace refimpl::bind {

// ---- add_noise, add_keyed_noise, keyed_normal ----

template <class Backend>
Tensor noise_into(const Tensor& x0, Noise noise, const Tensor& alpha, const Tensor& sigma,
                  at::MemoryFormat order) {
  Tensor kept[2];
  NoiseProblem p = {};
  p.layout = layout_of(x0, order);
  p.noise = noise;
  p.alpha = per_sample("alpha", alpha, x0, kept[0]);
  p.sigma = per_sample("sigma", sigma, x0, kept[1]);
  p.dtype = dtype_of("x0", x0);
  const Tensor ordered = x0.contiguous(order);
  Tensor out = Backend::empty(ordered.sizes(), ordered.options(), order);
  p.x0 = ordered.const_data_ptr();
  p.out = out.mutable_data_ptr();
  if (out.numel()) Backend::noise(p);
  return out;
}

template <class Backend>
Tensor add_noise(const Tensor& x0, const Tensor& eps, const Tensor& alpha, const Tensor& sigma) {
  const typename Backend::Guard guard(x0.device());
  check_image("x0", x0);
  check_like("eps", eps, "x0", x0);
  dtype_of("x0", x0), dtype_of("eps", eps);
  const at::ScalarType common = common_dtype(x0, eps);
  if (x0.scalar_type() != common || eps.scalar_type() != common)
    return add_noise<Backend>(x0.to(common), eps.to(common), alpha, sigma).to(x0.scalar_type());
  const at::MemoryFormat order = order_of(x0);
  const Tensor stored = eps.contiguous(order);
  return noise_into<Backend>(x0, {stored.const_data_ptr(), nullptr, 0}, alpha, sigma, order);
}

template <class Backend>
Tensor add_keyed_noise(const Tensor& x0, const Tensor& key, const Tensor& alpha, const Tensor& sigma,
                       double offset) {
  const typename Backend::Guard guard(x0.device());
  check_image("x0", x0);
  Tensor kept;
  const Noise noise = keyed_noise(key, x0, offset, kept);
  return noise_into<Backend>(x0, noise, alpha, sigma, order_of(x0));
}

template <class Backend>
Tensor keyed_normal(const Tensor& key, int64_t channels, int64_t height, int64_t width, double offset) {
  const typename Backend::Guard guard(key.device());
  TORCH_CHECK_VALUE(channels >= 0 && height >= 0 && width >= 0,
                    "shape must be (C, H, W) with sizes of at least 0, got (", channels, ", ", height, ", ",
                    width, ")");
  TORCH_CHECK_VALUE(key.dim() == 2, "key must have shape [B, 2], got ", key.sizes());
  Tensor kept;
  Tensor out = Backend::empty({key.size(0), channels, height, width}, key.options().dtype(at::kFloat),
                              at::MemoryFormat::Contiguous);
  NoiseProblem p = {};
  p.layout = layout_of(out, at::MemoryFormat::Contiguous);
  p.noise = keyed_noise(key, out, offset, kept);
  p.out = out.mutable_data_ptr();
  if (out.numel()) Backend::noise(p);
  return out;
}

// ---- v_loss, keyed_v_loss ----

// The tensors of one loss, checked and in one memory format; owns the converted copies.
struct LossCall {
  LossProblem p = {};
  at::MemoryFormat order;
  Tensor prediction, x0, noise, scratch, scalars[4];

  LossCall(const Tensor& prediction_, const Tensor& x0_, const std::optional<Tensor>& eps,
           const std::optional<Tensor>& key, const Tensor& alpha, const Tensor& sigma, const Tensor& weight,
           double offset, std::optional<double> expected) {
    check_image("x0", x0_);
    check_like("prediction", prediction_, "x0", x0_);
    TORCH_CHECK_VALUE(x0_.numel() > 0 || x0_.size(0) == 0, "the loss is a mean over C, H, W, and shape ",
                      x0_.sizes(), " leaves nothing to average");
    p.prediction_dtype = dtype_of("prediction", prediction_);
    p.latent_dtype = dtype_of("x0", x0_);
    order = order_of(prediction_);
    at::ScalarType latents = prediction_.scalar_type();
    if (x0_.scalar_type() != latents || (eps && eps->scalar_type() != latents)) {
      latents = latents == at::kDouble ? at::kDouble : at::kFloat;
      p.latent_dtype = latents == at::kDouble ? DType::f64 : DType::f32;
    }
    prediction = prediction_.contiguous(order);
    x0 = converted(x0_, latents, order);
    if (eps) {
      check_like("eps", *eps, "x0", x0_);
      dtype_of("eps", *eps);
      noise = converted(*eps, latents, order);
      p.noise = {noise.const_data_ptr(), nullptr, 0};
    } else {
      p.noise = keyed_noise(*key, x0_, offset, noise);
    }
    p.layout = layout_of(x0_, order);
    p.prediction = prediction.const_data_ptr();
    p.x0 = x0.const_data_ptr();
    p.alpha = per_sample("alpha", alpha, x0_, scalars[0]);
    p.sigma = per_sample("sigma", sigma, x0_, scalars[1]);
    p.weight = per_sample("weight", weight, x0_, scalars[2]);
    p.expected = expected.value_or(1.0 / double(x0_.size(0)));  // the caller takes the batch's mean
  }

  template <class Backend>
  Tensor with_loss() {
    const bool wide = p.prediction_dtype == DType::f64;
    Tensor loss = at::empty({x0.size(0)}, x0.options().dtype(wide ? at::kDouble : at::kFloat));
    scratch = at::empty({Backend::loss_partials(p)}, x0.options().dtype(Backend::loss_partial_dtype));
    p.partial = scratch.mutable_data_ptr();
    p.loss = loss.mutable_data_ptr();
    return loss;
  }

  template <class Backend>
  Tensor with_grad() {
    Tensor grad = Backend::empty(prediction.sizes(), prediction.options(), order);
    p.grad = grad.mutable_data_ptr();
    return grad;
  }

  void with_incoming(const Tensor& incoming) {
    p.incoming = per_sample("the gradient by the loss", incoming, x0, scalars[3]);
  }

  template <class Backend>
  void run() {
    if (prediction.numel()) Backend::loss(p);
  }
};

template <class Backend>
Tensor v_loss(const Tensor& prediction, const Tensor& x0, const Tensor& eps, const Tensor& alpha,
              const Tensor& sigma, const Tensor& weight, std::optional<double> expected) {
  const typename Backend::Guard guard(prediction.device());
  LossCall call(prediction, x0, eps, std::nullopt, alpha, sigma, weight, 0, expected);
  Tensor loss = call.with_loss<Backend>();
  call.run<Backend>();
  return loss;
}

template <class Backend>
Tensor keyed_v_loss(const Tensor& prediction, const Tensor& x0, const Tensor& key, const Tensor& alpha,
                    const Tensor& sigma, const Tensor& weight, double offset,
                    std::optional<double> expected) {
  const typename Backend::Guard guard(prediction.device());
  LossCall call(prediction, x0, std::nullopt, key, alpha, sigma, weight, offset, expected);
  Tensor loss = call.with_loss<Backend>();
  call.run<Backend>();
  return loss;
}

template <class Backend>
std::tuple<Tensor, Tensor> v_loss_forward(const Tensor& prediction, const Tensor& x0,
                                          const std::optional<Tensor>& eps, const std::optional<Tensor>& key,
                                          const Tensor& alpha, const Tensor& sigma, const Tensor& weight,
                                          double offset, std::optional<double> expected) {
  const typename Backend::Guard guard(prediction.device());
  LossCall call(prediction, x0, eps, key, alpha, sigma, weight, offset, expected);
  Tensor loss = call.with_loss<Backend>();
  Tensor grad = call.with_grad<Backend>();
  call.run<Backend>();
  return {loss, grad};
}

template <class Backend>
Tensor v_loss_backward(const Tensor& prediction, const Tensor& x0, const std::optional<Tensor>& eps,
                       const std::optional<Tensor>& key, const Tensor& alpha, const Tensor& sigma,
                       const Tensor& weight, double offset, const Tensor& incoming) {
  const typename Backend::Guard guard(prediction.device());
  LossCall call(prediction, x0, eps, key, alpha, sigma, weight, offset, std::nullopt);
  Tensor grad = call.with_grad<Backend>();
  call.with_incoming(incoming);
  call.run<Backend>();
  return grad;
}

template <class Backend>
void v_loss_correct_(Tensor grad, const Tensor& prediction, const Tensor& x0,
                     const std::optional<Tensor>& eps, const std::optional<Tensor>& key, const Tensor& alpha,
                     const Tensor& sigma, const Tensor& weight, double offset, const Tensor& incoming,
                     std::optional<double> expected) {
  const typename Backend::Guard guard(prediction.device());
  LossCall call(prediction, x0, eps, key, alpha, sigma, weight, offset, expected);
  TORCH_CHECK_VALUE(grad.sizes() == prediction.sizes() && grad.scalar_type() == prediction.scalar_type() &&
                        grad.is_contiguous(call.order),
                    "grad must be what v_loss_forward returned for this prediction");
  call.p.grad = grad.mutable_data_ptr();
  call.p.only_unexpected = true;
  call.with_incoming(incoming);
  call.run<Backend>();
}

// ---- channel_moments ----

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> channel_moments(const Tensor& x) {
  const typename Backend::Guard guard(x.device());
  check_image("x", x);
  const at::MemoryFormat order = order_of(x);
  const Tensor ordered = x.contiguous(order);
  const auto options = x.options().dtype(at::kDouble);
  Tensor count = at::empty({}, options), mean = at::empty({x.size(1)}, options),
         m2 = at::empty({x.size(1)}, options);
  MomentsProblem p = {};
  p.layout = layout_of(x, order);
  p.x = ordered.const_data_ptr();
  p.dtype = dtype_of("x", x);
  const Tensor scratch = at::empty({Backend::moments_partials(p), 3}, options);
  p.partial = static_cast<Moments*>(scratch.mutable_data_ptr());
  p.count = count.mutable_data_ptr<double>();
  p.mean = mean.mutable_data_ptr<double>();
  p.m2 = m2.mutable_data_ptr<double>();
  Backend::moments(p);
  return {count, mean, m2};
}

template <class Backend>
void register_ops(torch::Library& m) {
  m.impl("add_noise", &add_noise<Backend>);
  m.impl("add_keyed_noise", &add_keyed_noise<Backend>);
  m.impl("keyed_normal", &keyed_normal<Backend>);
  m.impl("v_loss", &v_loss<Backend>);
  m.impl("keyed_v_loss", &keyed_v_loss<Backend>);
  m.impl("v_loss_forward", &v_loss_forward<Backend>);
  m.impl("v_loss_backward", &v_loss_backward<Backend>);
  m.impl("v_loss_correct_", &v_loss_correct_<Backend>);
  m.impl("channel_moments", &channel_moments<Backend>);
}

}  // namespace refimpl::bind
