// geglu on CUDA: value, and gradient with the gate computed again (Shazeer 2020, §2).
#include "grid.cuh"

namespace refimpl::cuda {
namespace {

// Each thread takes V adjacent elements of a row, then those a whole grid further on. `per_row` is the width,
// rounded up to whole vectors.
template <class X, bool SLOPES, bool ALIGNED>
__global__ void __launch_bounds__(THREADS) geglu_kernel(GegluProblem p, int64_t per_row) {
  constexpr int V = VECTOR<X>;
  const int64_t n = p.width;
  const int64_t start = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * V,
                step = gridDim.x * int64_t(THREADS) * V;
  const int64_t row_step = divide(step, per_row), column_step = step - row_step * per_row;
  int64_t row = divide(start, per_row), column = start - row * per_row;
  while (row < p.rows) {
    const X* packed = static_cast<const X*>(p.packed) + 2 * row * n;
    X a[V] = {}, b[V] = {};
    load<ALIGNED>(a, packed, column, n);
    load<ALIGNED>(b, packed, n + column, 2 * n);
    if constexpr (SLOPES) {
      X g[V] = {}, by_a[V], by_b[V];
      load<ALIGNED>(g, static_cast<const X*>(p.incoming) + row * n, column, n);
#pragma unroll
      for (int l = 0; l < V; ++l) {
        const auto slopes = gated_slopes(widen(a[l]), widen(b[l]), widen(g[l]));
        by_a[l] = narrow<X>(slopes.by_a);
        by_b[l] = narrow<X>(slopes.by_b);
      }
      X* out = static_cast<X*>(p.out) + 2 * row * n;
      store<ALIGNED>(out, column, n, by_a);
      store<ALIGNED>(out, n + column, 2 * n, by_b);
    } else {
      X y[V];
#pragma unroll
      for (int l = 0; l < V; ++l) y[l] = narrow<X>(gated(widen(a[l]), widen(b[l])));
      store<ALIGNED>(static_cast<X*>(p.out) + row * n, column, n, y);
    }
    row += row_step;
    column += column_step;
    if (column >= per_row) column -= per_row, ++row;
  }
}

template <class X>
cudaError_t geglu_of(const GegluProblem& p, cudaStream_t stream) {
  constexpr int V = VECTOR<X>;
  const bool whole = p.width % V == 0 && aligned(p.packed) && aligned(p.incoming) && aligned(p.out);
  const int64_t per_row = divide_up(p.width, V) * V;
  unsigned blocks = 0;
  if (const cudaError_t error = blocks_for(divide_up(p.rows * per_row, THREADS * V), &blocks)) return error;
  if (p.incoming == nullptr)
    return whole ? launch(geglu_kernel<X, false, true>, blocks, stream, p, per_row)
                 : launch(geglu_kernel<X, false, false>, blocks, stream, p, per_row);
  return whole ? launch(geglu_kernel<X, true, true>, blocks, stream, p, per_row)
               : launch(geglu_kernel<X, true, false>, blocks, stream, p, per_row);
}

}  // namespace

cudaError_t geglu(const GegluProblem& p, cudaStream_t stream) {
  if (p.rows * p.width == 0) return cudaSuccess;
  switch (p.dtype) {
    case DType::f32: return geglu_of<float>(p, stream);
    case DType::bf16: return geglu_of<bf16>(p, stream);
    case DType::f16: return geglu_of<f16>(p, stream);
    case DType::f64: break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace refimpl::cuda
