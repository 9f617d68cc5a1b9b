// What layer_norm.cu needs of a row: its tile, its statistics, and the kernels of rows too wide for
// registers.
#pragma once

#include "grid.cuh"

namespace refimpl::cuda {

// Rows of a tile, whose gradients by weight and bias are added in float32: about 256 tiles, for a GPU's two
// blocks per multiprocessor, whichever GPU it is, so that all of them have the same bits; at most 32 rows of
// each warp.
inline int64_t tile_of(const LayerNormProblem& p) {
  const int64_t rows = divide_up(divide_up(p.rows, 256), WARPS) * WARPS;
  return rows < 256 ? rows : 256;
}

// The first column of a lane's access.
template <int V>
__device__ __forceinline__ int column_of(int access) {
  return (access * WARP + int(threadIdx.x) % WARP) * V;
}

// The row's own part of norm_slope.
struct RowShares {
  float share, slope;
};

struct RowStatistics {
  float mean, deviation;  // the second inverted

  __device__ __forceinline__ RowStatistics(float mean, float deviation) : mean(mean), deviation(deviation) {}

  __device__ __forceinline__ RowStatistics(const LayerNormProblem& p, int64_t row)
      : mean(static_cast<const float*>(p.mean)[row]),
        deviation(static_cast<const float*>(p.deviation)[row]) {}

  __device__ __forceinline__ void keep(const LayerNormProblem& p, int64_t row) const {
    static_cast<float*>(p.mean)[row] = mean;
    static_cast<float*>(p.deviation)[row] = deviation;
  }

  __device__ __forceinline__ ChannelNorm<float> norm(float weight, float bias) const {
    return {mean, deviation * weight, bias};
  }

  // From Σ weight·dz and Σ weight·dz·(x − mean) of the row.
  __device__ __forceinline__ RowShares shares(float first, float second, const LayerNormProblem& p) const {
    const float inverse = deviation / float(p.width);
    return {first * inverse, second * inverse * deviation * deviation};
  }

  // ∂/∂x of an element, where term = weight·dz.
  __device__ __forceinline__ float slope(float x, float term, const RowShares& shares) const {
    return norm_slope(x, term, norm(1, 0), shares.share, shares.slope);
  }
};

// From Σ (x − shift) and Σ (x − shift)², where shift is the mean but for roundings (Chan et al. 1983,
// eq. 1.7).
__device__ __forceinline__ RowStatistics statistics(float shift, float rest, float squares,
                                                    const LayerNormProblem& p) {
  const float n = float(p.width), m2 = squares - rest * rest / n;
  return {shift + rest / n, reciprocal_deviation(m2 < 0 ? 0.0f : m2, n, float(p.eps))};
}

// ---- Rows of any width, by a block each; they are read several times ----

template <class X>
__global__ void __launch_bounds__(THREADS) wide_rows_kernel(LayerNormProblem p) {
  __shared__ float shared[2 * WARPS];
  const float *weight = static_cast<const float*>(p.weight), *bias = static_cast<const float*>(p.bias);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const X* x = static_cast<const X*>(p.x) + row * p.width;
    float sum[1] = {}, sums[2] = {};
    for (int64_t c = threadIdx.x; c < p.width; c += THREADS) sum[0] += widen(x[c]);
    sum_over_block(sum, shared);
    const float shift = sum[0] / float(p.width);
    for (int64_t c = threadIdx.x; c < p.width; c += THREADS) {
      const float deviation = widen(x[c]) - shift;
      sums[0] += deviation;
      sums[1] = fused(deviation, deviation, sums[1]);
    }
    sum_over_block(sums, shared);
    const RowStatistics of_row = statistics(shift, sums[0], sums[1], p);
    if (threadIdx.x == 0) of_row.keep(p, row);
    X* y = static_cast<X*>(p.out) + row * p.width;
    for (int64_t c = threadIdx.x; c < p.width; c += THREADS)
      y[c] = narrow<X>(normalised(widen(x[c]), of_row.norm(weight[c], bias[c])));
  }
}

// The gradients by x.
template <class X>
__global__ void __launch_bounds__(THREADS) wide_slopes_kernel(LayerNormProblem p) {
  __shared__ float shared[2 * WARPS];
  const float* weight = static_cast<const float*>(p.weight);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const X* x = static_cast<const X*>(p.x) + row * p.width;
    const X* g = static_cast<const X*>(p.incoming) + row * p.width;
    const RowStatistics of_row(p, row);
    float sums[2] = {};
    for (int64_t c = threadIdx.x; c < p.width; c += THREADS) {
      const float term = weight[c] * widen(g[c]);
      sums[0] += term;
      sums[1] = fused(term, widen(x[c]) - of_row.mean, sums[1]);
    }
    sum_over_block(sums, shared);
    const RowShares shares = of_row.shares(sums[0], sums[1], p);
    X* dx = static_cast<X*>(p.out) + row * p.width;
    for (int64_t c = threadIdx.x; c < p.width; c += THREADS)
      dx[c] = narrow<X>(of_row.slope(widen(x[c]), weight[c] * widen(g[c]), shares));
  }
}

// The gradients by weight and bias of each tile of rows; an item is a slab of its columns, one in each
// thread.
template <class X>
__global__ void __launch_bounds__(THREADS)
    wide_columns_kernel(LayerNormProblem p, int64_t items, int64_t slabs, int64_t tile) {
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t k = divide(item, slabs), column = (item - k * slabs) * THREADS + threadIdx.x;
    const int64_t end = (k + 1) * tile < p.rows ? (k + 1) * tile : p.rows;
    if (column >= p.width) continue;
    float by_weight = 0, by_bias = 0;
    for (int64_t row = k * tile; row < end; ++row) {
      const RowStatistics of_row(p, row);
      const float x = widen(static_cast<const X*>(p.x)[row * p.width + column]);
      const float dz = widen(static_cast<const X*>(p.incoming)[row * p.width + column]);
      by_weight = fused(dz * of_row.deviation, x - of_row.mean, by_weight);
      by_bias += dz;
    }
    float* sums = static_cast<float*>(p.partial) + k * 2 * p.width + column;
    sums[0] = by_weight;
    sums[p.width] = by_bias;
  }
}

}  // namespace refimpl::cuda
