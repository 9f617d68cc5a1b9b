// group_norm_silu on the CPU: a group at a time, in planes of its channels (Wu & He 2018, eq. 1).
#include <vector>

#include "sums_cpu.h"

namespace refimpl::cpu {
namespace {

// The planes [C / groups, H·W] of one group: where they lie, or a copy of channels-last ones.
template <class X>
struct Planes {
  const GroupNormProblem& p;
  int64_t b, first;  // sample and first channel
  std::vector<X> copy = {};

  REFIMPL_FN int64_t at(int64_t c, int64_t i) const {
    return (b * p.layout.area + i) * p.layout.channels + first + c;
  }

  REFIMPL_FN const X* read(const void* tensor) {
    const int64_t channels = p.group_size(), area = p.layout.area;
    const X* x = static_cast<const X*>(tensor);
    if (!p.layout.channels_last) return x + (b * p.layout.channels + first) * area;
    copy.resize(size_t(channels * area));
    for (int64_t i = 0; i < area; ++i)
      for (int64_t c = 0; c < channels; ++c) copy[size_t(c * area + i)] = x[at(c, i)];
    return copy.data();
  }

  REFIMPL_FN X* place() {
    if (!p.layout.channels_last)
      return static_cast<X*>(p.out) + (b * p.layout.channels + first) * p.layout.area;
    copy.resize(size_t(p.group_size() * p.layout.area));
    return copy.data();
  }

  REFIMPL_FN void write() {
    if (!p.layout.channels_last) return;
    X* out = static_cast<X*>(p.out);
    for (int64_t i = 0; i < p.layout.area; ++i)
      for (int64_t c = 0; c < p.group_size(); ++c) out[at(c, i)] = copy[size_t(c * p.layout.area + i)];
  }
};

template <class X>
REFIMPL_FN ChannelNorm<arithmetic_t<X>> channel_norm(const GroupNormProblem& p, int64_t item, int64_t c) {
  using A = arithmetic_t<X>;
  const int64_t channel = item % p.groups * p.group_size() + c;
  return {static_cast<const A*>(p.mean)[item],
          static_cast<const A*>(p.deviation)[item] * static_cast<const A*>(p.weight)[channel],
          static_cast<const A*>(p.bias)[channel]};
}

template <class X>
REFIMPL_FN void forward(const GroupNormProblem& p, int64_t item) {
  using A = arithmetic_t<X>;
  const int64_t channels = p.group_size(), area = p.layout.area, n = channels * area;
  Planes<X> in = {p, item / p.groups, item % p.groups * channels}, out = in;
  const X* x = in.read(p.x);
  const A mean =
      A(sum_over<A>(n, [=](int64_t i) __attribute__((always_inline)) { return A(widen(x[i])); }) / double(n));
  const double m2 = sum_over<A>(n, [=](int64_t i) __attribute__((always_inline)) {
    const A deviation = A(widen(x[i])) - mean;
    return deviation * deviation;
  });
  static_cast<A*>(p.mean)[item] = mean;
  static_cast<A*>(p.deviation)[item] = A(reciprocal_deviation(m2, double(n), p.eps));
  X* y = out.place();
  for (int64_t c = 0; c < channels; ++c) {
    const ChannelNorm<A> norm = channel_norm<X>(p, item, c);
    const X* __restrict from = x + c * area;
    X* __restrict to = y + c * area;
    for (int64_t i = 0; i < area; ++i) to[i] = narrow<X>(silu(normalised(A(widen(from[i])), norm)));
  }
  out.write();
}

template <class X>
REFIMPL_FN void backward(const GroupNormProblem& p, int64_t item, std::vector<arithmetic_t<X>>& slopes) {
  using A = arithmetic_t<X>;
  const int64_t channels = p.group_size(), area = p.layout.area;
  const int64_t b = item / p.groups, first = item % p.groups * channels;
  Planes<X> of_x = {p, b, first}, of_g = of_x, out = of_x;
  const X *x = of_x.read(p.x), *g = of_g.read(p.incoming);
  const A deviation = static_cast<const A*>(p.deviation)[item];
  const A* weight = static_cast<const A*>(p.weight) + first;
  double* sums = static_cast<double*>(p.partial) + 2 * (b * p.layout.channels + first);
  double share = 0, slope = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const ChannelNorm<A> norm = channel_norm<X>(p, item, c);
    const X* __restrict from = x + c * area;
    const X* __restrict incoming = g + c * area;
    A* __restrict dz = slopes.data() + c * area;
    for (int64_t i = 0; i < area; ++i)
      dz[i] = A(widen(incoming[i])) * silu_derivative(normalised(A(widen(from[i])), norm));
    const Two<double> of_channel = two_sums_over<A>(area, [=](int64_t i) __attribute__((always_inline)) {
      return Two<A>{dz[i], dz[i] * (A(widen(from[i])) - norm.mean)};
    });
    sums[2 * c] = of_channel.first;
    sums[2 * c + 1] = double(deviation) * of_channel.second;
    share += double(weight[c]) * sums[2 * c];
    slope += double(weight[c]) * sums[2 * c + 1];
  }
  const double n = double(channels * area);
  const A by_share = A(share / n * double(deviation));
  const A by_slope = A(slope / n * double(deviation) * double(deviation));
  X* dx = out.place();
  for (int64_t c = 0; c < channels; ++c) {
    const ChannelNorm<A> norm = channel_norm<X>(p, item, c);
    const X* __restrict from = x + c * area;
    const A* __restrict dz = slopes.data() + c * area;
    X* __restrict to = dx + c * area;
    for (int64_t i = 0; i < area; ++i)
      to[i] = narrow<X>(norm_slope(A(widen(from[i])), dz[i], norm, by_share, by_slope));
  }
  out.write();
}

template <class X>
struct GroupNorm {
  static REFIMPL_FN void items(const GroupNormProblem& p, int64_t begin, int64_t end) {
    const bool back = p.incoming != nullptr;
    std::vector<arithmetic_t<X>> slopes(back ? size_t(p.group_size() * p.layout.area)
                                             : 0);  // by z, of a group
    for (int64_t item = begin; item < end; ++item) {
      if (back)
        backward<X>(p, item, slopes);
      else
        forward<X>(p, item);
    }
  }
};

template <class A>
void finish(const GroupNormProblem& p) {
  const int64_t channels = p.layout.channels;
  const double* sums = static_cast<const double*>(p.partial);
  for (int64_t c = 0; c < channels; ++c) {
    double by_bias = 0, by_weight = 0;
    for (int64_t b = 0; b < p.layout.batch; ++b) {
      by_bias += sums[2 * (b * channels + c)];
      by_weight += sums[2 * (b * channels + c) + 1];
    }
    static_cast<A*>(p.by_bias)[c] = A(by_bias);
    static_cast<A*>(p.by_weight)[c] = A(by_weight);
  }
}

}  // namespace

int64_t group_norm_items(const GroupNormProblem& p) { return p.layout.batch * p.groups; }

int64_t group_norm_partials(const GroupNormProblem& p) {
  return p.incoming == nullptr ? 0 : 2 * p.layout.batch * p.layout.channels;
}

void group_norm_silu(const GroupNormProblem& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::f32: return run<GroupNorm<float>>(p, begin, end);
    case DType::bf16: return run<GroupNorm<bf16>>(p, begin, end);
    case DType::f16: return run<GroupNorm<f16>>(p, begin, end);
    case DType::f64: return run<GroupNorm<double>>(p, begin, end);
  }
}

void finish_group_norm(const GroupNormProblem& p) {
  if (p.dtype == DType::f64)
    finish<double>(p);
  else
    finish<float>(p);
}

}  // namespace refimpl::cpu
