// geglu on the CPU: value, and gradient with the gate computed again (Shazeer 2020, §2).
#include "cpu.h"

namespace refimpl::cpu {
namespace {

template <class X>
REFIMPL_FN void value_row(X* __restrict out, const X* __restrict a, const X* __restrict b, int64_t width) {
  using A = arithmetic_t<X>;
  constexpr int N = PACK<X>;
  for (int64_t w = 0; w < width / N; ++w) {
    A y[N];
    for (int k = 0; k < N; ++k) y[k] = gated(A(load<N>(a, w, k)), A(load<N>(b, w, k)));
    store<N>(out, w, y);
  }
  if (width % N) {
    const int64_t last = width - 1;
    out[last] = narrow<X>(gated(A(widen(a[last])), A(widen(b[last]))));
  }
}

template <class X>
REFIMPL_FN void slope_row(X* __restrict by_a, X* __restrict by_b, const X* __restrict a,
                          const X* __restrict b, const X* __restrict g, int64_t width) {
  using A = arithmetic_t<X>;
  constexpr int N = PACK<X>;
  for (int64_t w = 0; w < width / N; ++w) {
    A first[N], second[N];
    for (int k = 0; k < N; ++k) {
      const auto slopes = gated_slopes(A(load<N>(a, w, k)), A(load<N>(b, w, k)), A(load<N>(g, w, k)));
      first[k] = slopes.by_a;
      second[k] = slopes.by_b;
    }
    store<N>(by_a, w, first);
    store<N>(by_b, w, second);
  }
  if (width % N) {
    const int64_t last = width - 1;
    const auto slopes = gated_slopes(A(widen(a[last])), A(widen(b[last])), A(widen(g[last])));
    by_a[last] = narrow<X>(slopes.by_a);
    by_b[last] = narrow<X>(slopes.by_b);
  }
}

// An item is one row, or as many short ones as make up a chunk.
REFIMPL_FN int64_t rows_per_item(const GegluProblem& p) { return divide_up(CHUNK, p.width); }

template <class X>
struct Geglu {
  static REFIMPL_FN void items(const GegluProblem& p, int64_t begin, int64_t end) {
    const int64_t n = p.width, step = rows_per_item(p);
    for (int64_t row = begin * step; row < smaller(end * step, p.rows); ++row) {
      const X* a = static_cast<const X*>(p.packed) + 2 * row * n;
      if (p.incoming == nullptr) {
        value_row(static_cast<X*>(p.out) + row * n, a, a + n, n);
      } else {
        X* by_a = static_cast<X*>(p.out) + 2 * row * n;
        slope_row(by_a, by_a + n, a, a + n, static_cast<const X*>(p.incoming) + row * n, n);
      }
    }
  }
};

}  // namespace

int64_t geglu_items(const GegluProblem& p) { return p.width == 0 ? 0 : divide_up(p.rows, rows_per_item(p)); }

void geglu(const GegluProblem& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::f32: return run<Geglu<float>>(p, begin, end);
    case DType::bf16: return run<Geglu<bf16>>(p, begin, end);
    case DType::f16: return run<Geglu<f16>>(p, begin, end);
    case DType::f64: return run<Geglu<double>>(p, begin, end);
  }
}

}  // namespace refimpl::cpu
