// adamw_ema_ over lists of torch tensors, once for all devices: check, bring into one memory order, run.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <utility>
#include <vector>

#include "adamw_ema.h"
#include "inputs.h"

namespace refimpl::bind {

// The lists of one call, checked, and copies of what lies in another memory order than its weight.
struct AdamWCall {
  std::vector<AdamWTensor> tensors;
  std::vector<Tensor> kept;                          // copies that must live until the kernel has read them
  std::vector<std::pair<Tensor, Tensor>> copy_back;  // (result, copy of it in the weight's order)

  static Tensor checked(const char* name, size_t k, const Tensor& x, const Tensor& weight) {
    TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, name, "[", k, "] must be float32, got ", x.scalar_type(),
                     "; choose the backend 'reference' for other dtypes");
    TORCH_CHECK_VALUE(x.sizes() == weight.sizes(), name, "[", k, "] has shape ", x.sizes(), " and weights[",
                      k, "] ", weight.sizes(), ": they must agree");
    TORCH_CHECK_VALUE(x.device() == weight.device(), name, "[", k, "] is on ", x.device(), " and weights[", k,
                      "] on ", weight.device(), ": move them to one device");
    return x;
  }

  float* changed(const char* name, size_t k, const Tensor& x, const Tensor& weight) {
    checked(name, k, x, weight);
    x.unsafeGetTensorImpl()->bump_version();  // autograd notices a graph that still needs the old value
    if (x.strides() == weight.strides()) return x.mutable_data_ptr<float>();
    copy_back.emplace_back(x, at::empty_like(weight).copy_(x));
    return copy_back.back().second.mutable_data_ptr<float>();
  }

  AdamWCall(at::TensorList weights, at::TensorList gradients, at::TensorList exp_avgs,
            at::TensorList exp_avg_sqs, at::TensorList averages, at::TensorList steps) {
    const size_t n = weights.size();
    TORCH_CHECK_VALUE(gradients.size() == n && exp_avgs.size() == n && exp_avg_sqs.size() == n &&
                          steps.size() == n && (averages.empty() || averages.size() == n),
                      "the lists have ", n, " weights, ", gradients.size(), " gradients, ", exp_avgs.size(),
                      " exp_avgs, ", exp_avg_sqs.size(), " exp_avg_sqs, ", averages.size(), " averages, ",
                      steps.size(), " steps: they must agree (averages may be empty)");
    tensors.reserve(n);
    for (size_t k = 0; k < n; ++k) {
      const Tensor& weight = weights[k];
      TORCH_CHECK_VALUE(weight.is_non_overlapping_and_dense(), "weights[", k, "] of shape ", weight.sizes(),
                        " has strides ", weight.strides(), ": it must fill its memory without gaps");
      TORCH_CHECK_VALUE(weight.device() == weights[0].device(), "weights[", k, "] is on ", weight.device(),
                        " and weights[0] on ", weights[0].device(), ": move them to one device");
      TORCH_CHECK_VALUE(steps[k].numel() == 1 && steps[k].scalar_type() == at::kFloat &&
                            steps[k].device() == weight.device(),
                        "steps[", k, "] must be one float32 value on ", weight.device(), ", got ",
                        steps[k].scalar_type(), " of shape ", steps[k].sizes(), " on ", steps[k].device());
      AdamWTensor t = {};
      t.weight = changed("weights", k, weight, weight);
      Tensor gradient = checked("gradients", k, gradients[k], weight);
      if (gradient.strides() != weight.strides()) {
        gradient = at::empty_like(weight).copy_(gradient);
        kept.push_back(gradient);
      }
      t.gradient = gradient.const_data_ptr<float>();
      t.exp_avg = changed("exp_avgs", k, exp_avgs[k], weight);
      t.exp_avg_sq = changed("exp_avg_sqs", k, exp_avg_sqs[k], weight);
      if (!averages.empty()) t.average = changed("averages", k, averages[k], weight);
      t.step = steps[k].mutable_data_ptr<float>();
      t.count = weight.numel();
      tensors.push_back(t);
    }
  }
};

inline const float* one_value(const char* name, const Tensor& x, const Tensor& weight) {
  TORCH_CHECK_VALUE(x.numel() == 1 && x.scalar_type() == at::kFloat && x.device() == weight.device(), name,
                    " must be one float32 value on ", weight.device(), ", got ", x.scalar_type(),
                    " of shape ", x.sizes(), " on ", x.device());
  return x.const_data_ptr<float>();
}

template <class Backend>
void adamw_ema_(at::TensorList weights, at::TensorList gradients, at::TensorList exp_avgs,
                at::TensorList exp_avg_sqs, at::TensorList averages, at::TensorList steps,
                const Tensor& scale, const Tensor& found_inf, double learning_rate, double beta1,
                double beta2, double epsilon, double weight_decay, double decay) {
  if (weights.empty()) return;
  const typename Backend::Guard guard(weights[0].device());
  const at::AutoDispatchBelowADInplaceOrView below;  // the copies are no part of a graph
  AdamWCall call(weights, gradients, exp_avgs, exp_avg_sqs, averages, steps);
  const auto bytes = weights[0].options().dtype(at::kByte);
  const Tensor corrections = at::empty({int64_t(call.tensors.size() * sizeof(AdamWCorrection))}, bytes);
  AdamWProblem p = {};
  p.tensors = call.tensors.data();
  p.tensor_count = int64_t(call.tensors.size());
  p.rule = adamw_rule(learning_rate, beta1, beta2, epsilon, weight_decay, decay);
  p.scale = one_value("scale", scale, weights[0]);
  p.found_inf = one_value("found_inf", found_inf, weights[0]);
  p.corrections = static_cast<AdamWCorrection*>(corrections.mutable_data_ptr());
  Backend::adamw_ema(p);
  for (const auto& [result, copy] : call.copy_back) result.copy_(copy);
}

}  // namespace refimpl::bind
