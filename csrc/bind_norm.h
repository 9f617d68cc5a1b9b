// What group_norm_silu and layer_norm share over torch tensors: parameters, statistics, results and
// gradients.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "inputs.h"

namespace refimpl::bind {

using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

// The tensors of one call, checked and in one memory order; owns the converted copies.
template <class Problem>
struct NormCall {
  Problem p = {};
  at::MemoryFormat order;
  at::ScalarType wide;              // of statistics and parameters
  std::vector<int64_t> statistics;  // sizes of mean and deviation
  Tensor x, weight, bias, scratch;

  // Takes x, whose dimension `channels` has a weight and a bias for each of its elements.
  void take(const Tensor& x_, int64_t channels, const Tensor& weight_, const Tensor& bias_, double eps,
            at::MemoryFormat order_) {
    for (const auto& [name, parameter] : {std::pair("weight", &weight_), std::pair("bias", &bias_)})
      TORCH_CHECK_VALUE(parameter->dim() == 1 && parameter->size(0) == x_.size(channels) &&
                            parameter->device() == x_.device(),
                        name, " has shape ", parameter->sizes(), " on ", parameter->device(), " and x ",
                        x_.sizes(), " on ", x_.device(), ": give one per channel");
    p.dtype = dtype_of("x", x_);
    dtype_of("weight", weight_), dtype_of("bias", bias_);
    wide = p.dtype == DType::f64 ? at::kDouble : at::kFloat;
    order = order_;
    x = x_.contiguous(order);
    weight = converted(weight_, wide, at::MemoryFormat::Contiguous);
    bias = converted(bias_, wide, at::MemoryFormat::Contiguous);
    p.eps = eps;
    p.x = x.const_data_ptr();
    p.weight = weight.const_data_ptr();
    p.bias = bias.const_data_ptr();
  }

  double* partials(int64_t count) {
    scratch = at::empty({count}, x.options().dtype(at::kDouble));
    return scratch.mutable_data_ptr<double>();
  }
};

// The result, and the mean and reciprocal deviation of each group or row.
template <class Backend, class Call>
ThreeTensors norm_forward(Call& call) {
  const auto options = call.x.options().dtype(call.wide);
  Tensor y = Backend::empty(call.x.sizes(), call.x.options(), call.order);
  Tensor mean = at::empty(call.statistics, options), deviation = at::empty(call.statistics, options);
  call.p.out = y.mutable_data_ptr();
  call.p.mean = mean.mutable_data_ptr();
  call.p.deviation = deviation.mutable_data_ptr();
  if (y.numel())
    call.template run<Backend>();
  else
    mean.zero_(), deviation.fill_(1 / std::sqrt(call.p.eps));
  return {y, mean, deviation};
}

// The gradients by x, weight and bias, in their dtypes; `forward` names what made mean and deviation.
template <class Backend, class Call>
ThreeTensors norm_backward(Call& call, const char* forward, const Tensor& grad, const Tensor& weight,
                           const Tensor& bias, const Tensor& mean, const Tensor& deviation) {
  check_like("grad", grad, "x", call.x);
  for (const Tensor* statistic : {&mean, &deviation})
    TORCH_CHECK_VALUE(statistic->sizes() == call.statistics && statistic->scalar_type() == call.wide &&
                          statistic->device() == call.x.device(),
                      "mean and deviation must be what ", forward, " returned for this x");
  const Tensor incoming = converted(grad, call.x.scalar_type(), call.order);
  const Tensor means = mean.contiguous(), deviations = deviation.contiguous();
  Tensor by_x = Backend::empty(call.x.sizes(), call.x.options(), call.order);
  Tensor by_weight = at::zeros_like(call.weight), by_bias = at::zeros_like(call.bias);
  call.p.incoming = incoming.const_data_ptr();
  call.p.mean = means.mutable_data_ptr();  // only read going back
  call.p.deviation = deviations.mutable_data_ptr();
  call.p.out = by_x.mutable_data_ptr();
  call.p.by_weight = by_weight.mutable_data_ptr();
  call.p.by_bias = by_bias.mutable_data_ptr();
  if (by_x.numel()) call.template run<Backend>();
  return {by_x, by_weight.to(weight.scalar_type()), by_bias.to(bias.scalar_type())};
}

}  // namespace refimpl::bind
