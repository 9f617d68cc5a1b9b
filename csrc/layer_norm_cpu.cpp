// layer_norm on the CPU: a row at a time, which stays in the first-level cache (Ba et al. 2016, eq. 4).
#include <type_traits>
#include <vector>

#include "sums_cpu.h"

namespace refimpl::cpu {
namespace {

// A row in the format of the arithmetic: where it lies, or a copy of its 16-bit elements, which are widened
// once.
template <class X, class A>
REFIMPL_FN const A* widened(const void* tensor, int64_t row, int64_t n, A* __restrict copy) {
  const X* __restrict x = static_cast<const X*>(tensor) + row * n;
  if constexpr (std::is_same_v<X, A>) {
    return x;
  } else {
    for (int64_t i = 0; i < n; ++i) copy[i] = widen(x[i]);
    return copy;
  }
}

template <class X, class A>
REFIMPL_FN void forward_row(const LayerNormProblem& p, int64_t row, A* copy) {
  const int64_t n = p.width;
  const A* __restrict x = widened<X>(p.x, row, n, copy);
  const A* __restrict weight = static_cast<const A*>(p.weight);
  const A* __restrict bias = static_cast<const A*>(p.bias);
  X* __restrict y = static_cast<X*>(p.out) + row * n;
  const A near =
      A(sum_over<A>(n, [=](int64_t i) __attribute__((always_inline)) { return x[i]; }) / double(n));
  const Two<double> sums = two_sums_over<A>(n, [=](int64_t i) __attribute__((always_inline)) {
    const A rest = x[i] - near;
    return Two<A>{rest, rest * rest};
  });
  const double shift = sums.first / double(n);  // what rounding left of the mean
  const A mean = A(double(near) + shift);
  const double m2 = sums.second - shift * sums.first;
  const A deviation = A(reciprocal_deviation(m2, double(n), p.eps));
  static_cast<A*>(p.mean)[row] = mean;
  static_cast<A*>(p.deviation)[row] = deviation;
  for (int64_t i = 0; i < n; ++i) y[i] = narrow<X>(normalised(x[i], {mean, deviation * weight[i], bias[i]}));
}

// Adds the row to the gradients by weight and bias of its item.
template <class X, class A>
REFIMPL_FN void backward_row(const LayerNormProblem& p, int64_t row, A* copies, A* __restrict by_weight,
                             A* __restrict by_bias) {
  const int64_t n = p.width;
  const A* __restrict x = widened<X>(p.x, row, n, copies);
  const A* __restrict dz = widened<X>(p.incoming, row, n, copies + n);
  const A* __restrict weight = static_cast<const A*>(p.weight);
  X* __restrict dx = static_cast<X*>(p.out) + row * n;
  const A mean = static_cast<const A*>(p.mean)[row], deviation = static_cast<const A*>(p.deviation)[row];
  const Two<double> sums = two_sums_over<A>(n, [=](int64_t i) __attribute__((always_inline)) {
    const A term = weight[i] * dz[i];
    return Two<A>{term, term * (x[i] - mean)};
  });
  const double d = double(deviation), inverse = d / double(n);
  const A share = A(sums.first * inverse), slope = A(sums.second * inverse * d * d);
  for (int64_t i = 0; i < n; ++i) {
    dx[i] = narrow<X>(norm_slope(x[i], dz[i], {mean, deviation * weight[i], A(0)}, share, slope));
    by_weight[i] = fused(dz[i] * deviation, x[i] - mean, by_weight[i]);
    by_bias[i] += dz[i];
  }
}

// Rows of an item going back: their gradients are added in float32, and those of all items in float64.
constexpr int64_t ADDED = 64;
constexpr int TOGETHER = 2;  // rows between reading an item's gradients and writing them

REFIMPL_FN int64_t rows_per_item(const LayerNormProblem& p) {
  return p.incoming == nullptr ? divide_up(CHUNK, p.width) : ADDED;
}

template <class X>
struct LayerNorm {
  using A = arithmetic_t<X>;

  static REFIMPL_FN void items(const LayerNormProblem& p, int64_t begin, int64_t end) {
    const int64_t step = rows_per_item(p), n = p.width;
    std::vector<A> copies(std::is_same_v<X, A> ? 0 : size_t(2 * n));
    if (p.incoming == nullptr) {
      for (int64_t row = begin * step; row < smaller(end * step, p.rows); ++row)
        forward_row<X>(p, row, copies.data());
      return;
    }
    std::vector<A> sums(size_t(2 * n));
    for (int64_t item = begin; item < end; ++item) {
      for (A& sum : sums) sum = 0;
      for (int64_t row = item * step; row < smaller((item + 1) * step, p.rows); ++row)
        backward_row<X>(p, row, copies.data(), sums.data(), sums.data() + n);
      double* partial = static_cast<double*>(p.partial) + item * 2 * n;
      for (int64_t k = 0; k < 2 * n; ++k) partial[k] = double(sums[size_t(k)]);
    }
  }
};

template <class A>
void finish(const LayerNormProblem& p) {
  const int64_t n = p.width;
  std::vector<double> sums(size_t(2 * n));
  for (int64_t item = 0; item < layer_norm_items(p); ++item) {
    const double* partial = static_cast<const double*>(p.partial) + item * 2 * n;
    for (int64_t k = 0; k < 2 * n; ++k) sums[size_t(k)] += partial[k];
  }
  for (int64_t k = 0; k < n; ++k) {
    static_cast<A*>(p.by_weight)[k] = A(sums[size_t(k)]);
    static_cast<A*>(p.by_bias)[k] = A(sums[size_t(n + k)]);
  }
}

}  // namespace

int64_t layer_norm_items(const LayerNormProblem& p) {
  return p.width == 0 ? 0 : divide_up(p.rows, rows_per_item(p));
}

int64_t layer_norm_partials(const LayerNormProblem& p) {
  return p.incoming == nullptr ? 0 : layer_norm_items(p) * 2 * p.width;
}

void layer_norm(const LayerNormProblem& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::f32: return run<LayerNorm<float>>(p, begin, end);
    case DType::bf16: return run<LayerNorm<bf16>>(p, begin, end);
    case DType::f16: return run<LayerNorm<f16>>(p, begin, end);
    case DType::f64: return run<LayerNorm<double>>(p, begin, end);
  }
}

void finish_layer_norm(const LayerNormProblem& p) {
  if (p.dtype == DType::f64)
    finish<double>(p);
  else
    finish<float>(p);
}

}  // namespace refimpl::cpu
