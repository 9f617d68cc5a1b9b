// Arguments of adamw_ema_: one AdamW step and one step of the moving average, over many tensors at once.
#pragma once

#include "formulas.h"

namespace refimpl {

// One trained tensor and what belongs to it: all of `count` elements, in the same order.
struct AdamWTensor {
  float* weight;
  const float* gradient;
  float* exp_avg;     // first moment
  float* exp_avg_sq;  // second moment
  float* average;     // null: no moving average is kept
  float* step;        // one value: number of steps taken
  int64_t count;
};

// What the number of steps makes of the learning rate and the second moment, one per tensor.
struct AdamWCorrection {
  float rate;  // learning rate / (1 − beta1ᵗ)
  float root;  // √(1 − beta2ᵗ)
};

// The settings that all tensors of a call share.
struct AdamWRule {
  double learning_rate, beta1, beta2;
  float share1, beta2_float, share2;  // 1 − beta1, beta2, 1 − beta2
  float epsilon, kept;                // kept = 1 − learning rate·weight decay
  float average_share;                // 1 − decay of the average
};

inline AdamWRule adamw_rule(double learning_rate, double beta1, double beta2, double epsilon,
                            double weight_decay, double decay) {
  AdamWRule rule = {learning_rate, beta1, beta2};
  rule.share1 = float(1 - beta1);
  rule.beta2_float = float(beta2);
  rule.share2 = float(1 - beta2);
  rule.epsilon = float(epsilon);
  rule.kept = float(1 - learning_rate * weight_decay);
  rule.average_share = float(1 - decay);
  return rule;
}

struct AdamWProblem {
  const AdamWTensor* tensors;  // in the host's memory
  int64_t tensor_count;
  AdamWRule rule;
  const float* scale;            // one value: what the gradients are multiplied by
  const float* found_inf;        // one value: 0, or else nothing is changed
  AdamWCorrection* corrections;  // scratch, one per tensor
};

// The correction after step t.
REFIMPL_FN AdamWCorrection correction_of(const AdamWRule& rule, double t) {
  return {float(rule.learning_rate / (1 - pow(rule.beta1, t))), float(sqrt(1 - pow(rule.beta2, t)))};
}

// One element: moments, weight and, if AVERAGE, the moving average.
template <bool AVERAGE>
REFIMPL_FN void adamw_ema_element(float& weight, float gradient, float& exp_avg, float& exp_avg_sq,
                                  float& average, float scale, const AdamWRule& rule,
                                  const AdamWCorrection& correction) {
  const float g = scale * gradient;
  exp_avg = toward(exp_avg, g, rule.share1);
  exp_avg_sq = second_moment(exp_avg_sq, g, rule.beta2_float, rule.share2);
  weight =
      adamw_weight(weight, exp_avg, exp_avg_sq, rule.kept, correction.rate, correction.root, rule.epsilon);
  if constexpr (AVERAGE) average = toward(average, weight, rule.average_share);
}

}  // namespace refimpl
