// adamw_ema_ on the CPU: one pass over weights, gradients, moments and averages (Loshchilov & Hutter 2019).
#include "cpu.h"

namespace refimpl::cpu {
namespace {

template <bool AVERAGE>
REFIMPL_FN void adamw_range(float* __restrict weight, const float* __restrict gradient,
                            float* __restrict exp_avg, float* __restrict exp_avg_sq,
                            float* __restrict average, float scale, AdamWRule rule,
                            AdamWCorrection correction, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    float unused = 0;
    adamw_ema_element<AVERAGE>(weight[i], gradient[i], exp_avg[i], exp_avg_sq[i],
                               AVERAGE ? average[i] : unused, scale, rule, correction);
  }
}

struct AdamWEma {
  static REFIMPL_FN void items(const AdamWProblem& p, int64_t begin, int64_t end) {
    int64_t k = 0, first = 0;  // the tensor of an item, and the number of its first
    for (int64_t item = begin; item < end; ++item) {
      while (item >= first + divide_up(p.tensors[k].count, CHUNK))
        first += divide_up(p.tensors[k++].count, CHUNK);
      const AdamWTensor& t = p.tensors[k];
      const int64_t at = (item - first) * CHUNK, count = smaller(CHUNK, t.count - at);
      const auto over = [&]<bool AVERAGE>() __attribute__((always_inline)) {
        adamw_range<AVERAGE>(t.weight + at, t.gradient + at, t.exp_avg + at, t.exp_avg_sq + at,
                             AVERAGE ? t.average + at : nullptr, *p.scale, p.rule, p.corrections[k], count);
      };
      if (t.average)
        over.template operator()<true>();
      else
        over.template operator()<false>();
    }
  }
};

}  // namespace

int64_t adamw_ema_items(const AdamWProblem& p) {
  int64_t items = 0;
  for (int64_t k = 0; k < p.tensor_count; ++k) items += divide_up(p.tensors[k].count, CHUNK);
  return items;
}

void start_adamw_ema(const AdamWProblem& p) {
  for (int64_t k = 0; k < p.tensor_count; ++k) {
    *p.tensors[k].step += 1;
    p.corrections[k] = correction_of(p.rule, double(*p.tensors[k].step));
  }
}

void adamw_ema(const AdamWProblem& p, int64_t begin, int64_t end) { run<AdamWEma>(p, begin, end); }

}  // namespace refimpl::cpu
