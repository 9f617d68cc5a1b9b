// The launcher of csrc/adamw_ema.cu, compiled for the CPU, behind a function
// that ctypes can call.
#include "launch.h"

using namespace refimpl;

// pointers: weight, gradient, exp_avg, exp_avg_sq, average (or null) and step
// of each tensor
extern "C" int emulated_adamw_ema(int64_t tensor_count, float* const* pointers, const int64_t* counts,
                                  const float* scale, const float* found_inf, const double* settings) {
  std::vector<AdamWTensor> tensors;
  for (int64_t k = 0; k < tensor_count; ++k) {
    float* const* p = pointers + 6 * k;
    tensors.push_back({p[0], p[1], p[2], p[3], p[4], p[5], counts[k]});
  }
  std::vector<AdamWCorrection> corrections(tensors.size(), {NAN, NAN});
  AdamWProblem p = {};
  p.tensors = tensors.data();
  p.tensor_count = tensor_count;
  p.rule = adamw_rule(settings[0], settings[1], settings[2], settings[3], settings[4], settings[5]);
  p.scale = scale;
  p.found_inf = found_inf;
  p.corrections = corrections.data();
  return cuda::adamw_ema(p, nullptr);
}
