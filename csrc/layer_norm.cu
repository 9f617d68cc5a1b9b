// layer_norm on CUDA (Ba et al. 2016, eq. 4): a warp takes a row and keeps it in registers. The gradients by
// weight and bias are added over a tile of rows, and those of all tiles by a second kernel.
#include "layer_norm.cuh"

namespace refimpl::cuda {
namespace {

// One row in a warp's registers, COLUMNS elements in each lane; 0 beyond the end.
template <class X, int COLUMNS, bool ALIGNED>
struct Row {
  static constexpr int V = VECTOR<X>, ACCESSES = COLUMNS / V;
  X values[ACCESSES][V] = {};

  __device__ __forceinline__ Row(const void* tensor, int64_t row, int n) {
#pragma unroll
    for (int a = 0; a < ACCESSES; ++a)
      if (const int column = column_of<V>(a); column < n)
        load<ALIGNED>(values[a], static_cast<const X*>(tensor) + row * n, column, n);
  }

  __device__ __forceinline__ float at(int a, int l) const { return widen(values[a][l]); }
};

// COLUMNS elements of a row are in each lane: it has at most WARP · COLUMNS.
template <class X, int COLUMNS, bool ALIGNED>
__global__ void __launch_bounds__(THREADS, 2) layer_norm_kernel(LayerNormProblem p) {
  constexpr int V = VECTOR<X>, ACCESSES = COLUMNS / V;
  const int n = int(p.width);
  const int64_t step = gridDim.x * int64_t(WARPS);
  for (int64_t row = blockIdx.x * int64_t(WARPS) + threadIdx.x / WARP; row < p.rows; row += step) {
    const Row<X, COLUMNS, ALIGNED> x(p.x, row, n);
    float sum = 0;
#pragma unroll
    for (int a = 0; a < ACCESSES; ++a)
#pragma unroll
      for (int l = 0; l < V; ++l) sum += x.at(a, l);
    const float shift = sum_over_warp(sum) / float(n);
    float rest = 0, squares = 0;
#pragma unroll
    for (int a = 0; a < ACCESSES; ++a)
#pragma unroll
      for (int l = 0; l < V; ++l) {
        const float deviation = x.at(a, l) - shift;
        if (column_of<V>(a) + (ALIGNED ? 0 : l) < n) {
          rest += deviation;
          squares = fused(deviation, deviation, squares);
        }
      }
    const RowStatistics of_row = statistics(shift, sum_over_warp(rest), sum_over_warp(squares), p);
    if (threadIdx.x % WARP == 0) of_row.keep(p, row);
#pragma unroll
    for (int a = 0; a < ACCESSES; ++a) {
      const int column = column_of<V>(a);
      if (column >= n) continue;
      float weight[V] = {}, bias[V] = {};
      load<ALIGNED>(weight, static_cast<const float*>(p.weight), column, n);
      load<ALIGNED>(bias, static_cast<const float*>(p.bias), column, n);
      X y[V];
#pragma unroll
      for (int l = 0; l < V; ++l) y[l] = narrow<X>(normalised(x.at(a, l), of_row.norm(weight[l], bias[l])));
      store<ALIGNED>(static_cast<X*>(p.out) + row * n, column, n, y);
    }
  }
}

// Adds up what the warps of the block have of each column, in order, to `sums` [n].
template <int V, bool ALIGNED, int COLUMNS>
__device__ __forceinline__ void add_warps(const float (&values)[COLUMNS],
                                          float (&shared)[WARPS][WARP * COLUMNS], float* sums, int n) {
  constexpr int N = VECTOR<float>;
#pragma unroll
  for (int k = 0; k < COLUMNS; ++k) shared[threadIdx.x / WARP][k * WARP + threadIdx.x % WARP] = values[k];
  __syncthreads();
  for (int column = threadIdx.x * N; column < n; column += THREADS * N) {
    const int access = column / V, k = access / WARP * V + column % V;
    float added[N];
#pragma unroll
    for (int l = 0; l < N; ++l) {
      added[l] = shared[0][(k + l) * WARP + access % WARP];
#pragma unroll
      for (int warp = 1; warp < WARPS; ++warp) added[l] += shared[warp][(k + l) * WARP + access % WARP];
    }
    store<ALIGNED>(sums, column, n, added);
  }
  __syncthreads();  // shared may be written again
}

// The gradients by x, and those by weight and bias of each tile of rows.
template <class X, int COLUMNS, bool ALIGNED>
__global__ void __launch_bounds__(THREADS)
    layer_norm_slopes_kernel(LayerNormProblem p, int64_t tiles, int64_t tile) {
  constexpr int V = VECTOR<X>, ACCESSES = COLUMNS / V;
  __shared__ float shared[WARPS][WARP * COLUMNS];
  const int n = int(p.width);
  for (int64_t item = blockIdx.x; item < tiles; item += gridDim.x) {
    float by_weight[COLUMNS] = {}, by_bias[COLUMNS] = {};
    const int64_t end = (item + 1) * tile < p.rows ? (item + 1) * tile : p.rows;
    for (int64_t row = item * tile + threadIdx.x / WARP; row < end; row += WARPS) {
      const Row<X, COLUMNS, ALIGNED> x(p.x, row, n), g(p.incoming, row, n);
      const RowStatistics of_row(p, row);
      float terms[COLUMNS], first = 0, second = 0;
#pragma unroll
      for (int a = 0; a < ACCESSES; ++a) {
        const int column = column_of<V>(a);
        float weight[V] = {};
        if (column < n) load<ALIGNED>(weight, static_cast<const float*>(p.weight), column, n);
#pragma unroll
        for (int l = 0; l < V; ++l) {
          const int k = a * V + l;
          const float dz = g.at(a, l), deviation = x.at(a, l) - of_row.mean;
          terms[k] = weight[l] * dz;
          first += terms[k];
          second = fused(terms[k], deviation, second);
          by_weight[k] = fused(dz * of_row.deviation, deviation, by_weight[k]);
          by_bias[k] += dz;
        }
      }
      const RowShares shares = of_row.shares(sum_over_warp(first), sum_over_warp(second), p);
#pragma unroll
      for (int a = 0; a < ACCESSES; ++a) {
        const int column = column_of<V>(a);
        if (column >= n) continue;
        X dx[V];
#pragma unroll
        for (int l = 0; l < V; ++l) dx[l] = narrow<X>(of_row.slope(x.at(a, l), terms[a * V + l], shares));
        store<ALIGNED>(static_cast<X*>(p.out) + row * n, column, n, dx);
      }
    }
    float* sums = static_cast<float*>(p.partial) + item * 2 * n;
    add_warps<V, ALIGNED>(by_weight, shared, sums, n);
    add_warps<V, ALIGNED>(by_bias, shared, sums + n, n);
  }
}

// Adds up the tiles' sums of each column in float64, each warp every eighth tile.
__global__ void __launch_bounds__(THREADS) layer_norm_sums_kernel(LayerNormProblem p, int64_t tiles) {
  __shared__ double shared[WARPS][WARP];
  const int64_t columns = 2 * p.width;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  for (int64_t slab = blockIdx.x; slab * WARP < columns; slab += gridDim.x) {
    const int64_t column = slab * WARP + lane;
    double sum = 0;
    if (column < columns)
      for (int64_t tile = warp; tile < tiles; tile += WARPS)
        sum += static_cast<const float*>(p.partial)[tile * columns + column];
    shared[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < columns) {
#pragma unroll
      for (int other = 1; other < WARPS; ++other) sum += shared[other][lane];
      if (column < p.width)
        static_cast<float*>(p.by_weight)[column] = float(sum);
      else
        static_cast<float*>(p.by_bias)[column - p.width] = float(sum);
    }
    __syncthreads();  // shared may be written again
  }
}

template <class X, int COLUMNS, bool ALIGNED>
cudaError_t of_rows(const LayerNormProblem& p, cudaStream_t stream) {
  const bool back = p.incoming != nullptr;
  const int64_t tile = tile_of(p), tiles = divide_up(p.rows, tile);
  unsigned blocks = 0;
  if (const cudaError_t error = blocks_for(back ? tiles : divide_up(p.rows, WARPS), &blocks)) return error;
  if (!back) return launch(layer_norm_kernel<X, COLUMNS, ALIGNED>, blocks, stream, p);
  return launch(layer_norm_slopes_kernel<X, COLUMNS, ALIGNED>, blocks, stream, p, tiles, tile);
}

template <class X>
cudaError_t of_wide_rows(const LayerNormProblem& p, cudaStream_t stream) {
  const int64_t tile = tile_of(p), tiles = divide_up(p.rows, tile);
  unsigned blocks = 0;
  if (const cudaError_t error = blocks_for(p.rows, &blocks)) return error;
  if (p.incoming == nullptr) return launch(wide_rows_kernel<X>, blocks, stream, p);
  if (const cudaError_t error = launch(wide_slopes_kernel<X>, blocks, stream, p)) return error;
  const int64_t slabs = divide_up(p.width, THREADS);
  if (const cudaError_t error = blocks_for(tiles * slabs, &blocks)) return error;
  return launch(wide_columns_kernel<X>, blocks, stream, p, tiles * slabs, slabs, tile);
}

template <class X>
cudaError_t layer_norm_of(const LayerNormProblem& p, cudaStream_t stream) {
  const bool whole = p.width % VECTOR<X> == 0 && aligned(p.x) && aligned(p.incoming) && aligned(p.out) &&
                     aligned(p.weight) && aligned(p.bias);
  const auto by = [&]<int COLUMNS>() {
    return whole ? of_rows<X, COLUMNS, true>(p, stream) : of_rows<X, COLUMNS, false>(p, stream);
  };
  // SDXL's rows have 640 and 1,280 elements. With 48 in a lane, the gradients would need more registers than
  // it has.
  if (p.width <= WARP * 24) return by.template operator()<24>();
  if (p.width <= WARP * 40) return by.template operator()<40>();
  return of_wide_rows<X>(p, stream);
}

}  // namespace

int64_t layer_norm_partials(const LayerNormProblem& p) {
  return p.incoming == nullptr ? 0 : divide_up(p.rows, tile_of(p)) * p.width;  // two float32 values in each
}

cudaError_t layer_norm(const LayerNormProblem& p, cudaStream_t stream) {
  if (p.rows * p.width == 0) return cudaSuccess;
  cudaError_t error = cudaErrorInvalidValue;
  if (p.dtype == DType::f32) error = layer_norm_of<float>(p, stream);
  if (p.dtype == DType::bf16) error = layer_norm_of<bf16>(p, stream);
  if (p.dtype == DType::f16) error = layer_norm_of<f16>(p, stream);
  if (error || p.incoming == nullptr) return error;
  unsigned blocks = 0;
  if (const cudaError_t failed = blocks_for(divide_up(2 * p.width, WARP), &blocks)) return failed;
  return launch(layer_norm_sums_kernel, blocks, stream, p, divide_up(p.rows, tile_of(p)));
}

}  // namespace refimpl::cuda
