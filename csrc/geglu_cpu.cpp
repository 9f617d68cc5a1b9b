// geglu on the CPU: value, and gradient with the gate computed again (Shazeer 2020, §2).
#include "cpu.h"

namespace refimpl::cpu {
namespace {

template <class X>
REFIMPL_FN void value_row(X* __restrict out, const X* __restrict a, const X* __restrict b, int64_t width) {
  using A = arithmetic_t<X>;
  for (int64_t i = 0; i < width; ++i) out[i] = narrow<X>(gated(A(widen(a[i])), A(widen(b[i]))));
}

template <class X>
REFIMPL_FN void slope_row(X* __restrict by_a, X* __restrict by_b, const X* __restrict a,
                          const X* __restrict b, const X* __restrict g, int64_t width) {
  using A = arithmetic_t<X>;
  for (int64_t i = 0; i < width; ++i) {
    const auto slopes = gated_slopes(A(widen(a[i])), A(widen(b[i])), A(widen(g[i])));
    by_a[i] = narrow<X>(slopes.by_a);
    by_b[i] = narrow<X>(slopes.by_b);
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
