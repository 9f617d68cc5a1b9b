// channel_moments on the CPU: two passes over a cached chunk, chunks merged by Chan's rule (N App. B).
#include <vector>

#include "cpu.h"

namespace refimpl::cpu {
namespace {

constexpr int LANES = 32;  // independent partial sums; the same on every instruction set, so the same bits

// Σ term(x[i]) in float64, in a fixed order.
template <class X, class Term>
REFIMPL_FN double sum_over(const X* __restrict x, int64_t count, Term term) {
  alignas(64) double lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    for (int l = 0; l < LANES; ++l) lanes[l] += term(double(widen(x[i + l])));
  for (int l = 0; i + l < count; ++l) lanes[l] += term(double(widen(x[i + l])));
  double sum = 0;
  for (int l = 0; l < LANES; ++l) sum += lanes[l];
  return sum;
}

template <class X>
REFIMPL_FN Moments moments_of(const X* x, int64_t count) {
  const double mean =
      sum_over(x, count, [](double value) __attribute__((always_inline)) { return value; }) / double(count);
  const double m2 = sum_over(x, count, [mean](double value) __attribute__((always_inline)) {
    return (value - mean) * (value - mean);
  });
  return {double(count), mean, m2};
}

// An item is CHUNK elements of one channel's plane or, if channels-last, a run of positions with all
// channels.
REFIMPL_FN int64_t item_positions(const Layout& layout) {
  if (!layout.channels_last) return CHUNK;
  return layout.channels < CHUNK / 4 ? CHUNK / layout.channels : 4;
}

template <class X>
REFIMPL_FN void separate(X* __restrict planes, const X* __restrict x, int64_t channels, int64_t positions) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t position = 0; position < positions; ++position)
      planes[c * positions + position] = x[position * channels + c];
}

template <class X>
struct ChannelMoments {
  static REFIMPL_FN void items(const MomentsProblem& p, int64_t begin, int64_t end) {
    const Layout& layout = p.layout;
    const X* x = static_cast<const X*>(p.x);
    const int64_t step = item_positions(layout);
    const int64_t chunks = divide_up(layout.area, step);
    std::vector<X> planes(size_t(layout.channels_last ? step * layout.channels : 0));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t plane = item / chunks,
                    start = (item % chunks) * step;  // plane: sample, or (sample, channel)
      const int64_t count = smaller(step, layout.area - start);
      if (!layout.channels_last) {
        p.partial[item] = moments_of(x + plane * layout.area + start, count);
        continue;
      }
      const X* positions = x + (plane * layout.area + start) * layout.channels;
      if (layout.channels == 4)  // a constant lets the compiler transpose in registers
        separate(planes.data(), positions, 4, count);
      else
        separate(planes.data(), positions, layout.channels, count);
      for (int64_t c = 0; c < layout.channels; ++c)
        p.partial[(plane * layout.channels + c) * chunks + item % chunks] =
            moments_of(planes.data() + c * count, count);
    }
  }
};

}  // namespace

int64_t moments_items(const MomentsProblem& p) {
  if (p.layout.sample() == 0) return 0;
  const int64_t planes = p.layout.channels_last ? p.layout.batch : p.layout.batch * p.layout.channels;
  return planes * divide_up(p.layout.area, item_positions(p.layout));
}

int64_t moments_partials(const MomentsProblem& p) {
  if (p.layout.sample() == 0) return 0;
  return p.layout.batch * p.layout.channels * divide_up(p.layout.area, item_positions(p.layout));
}

void moments(const MomentsProblem& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::f32: return run<ChannelMoments<float>>(p, begin, end);
    case DType::bf16: return run<ChannelMoments<bf16>>(p, begin, end);
    case DType::f16: return run<ChannelMoments<f16>>(p, begin, end);
    case DType::f64: return run<ChannelMoments<double>>(p, begin, end);
  }
}

void finish_moments(const MomentsProblem& p) {
  const Layout& layout = p.layout;
  const int64_t chunks = layout.sample() == 0 ? 0 : divide_up(layout.area, item_positions(layout));
  for (int64_t c = 0; c < layout.channels; ++c) {
    Moments total = {0, 0, 0};
    for (int64_t b = 0; b < layout.batch; ++b)
      for (int64_t k = 0; k < chunks; ++k)
        total = welford_merge(total, p.partial[(b * layout.channels + c) * chunks + k]);
    p.mean[c] = total.mean;
    p.m2[c] = total.m2;
  }
  *p.count = double(layout.batch) * double(layout.area);
}

}  // namespace refimpl::cpu
