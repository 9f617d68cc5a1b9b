// v_loss and keyed_v_loss on CUDA: the loss and its gradient in one pass over the inputs (N §2.1, §2.4).
#include "grid.cuh"

namespace refimpl::cuda {
namespace {

template <class P, class X, Source SOURCE, bool ALIGNED>
__global__ void __launch_bounds__(THREADS) loss_kernel(LossProblem p, int64_t tiles) {
  constexpr int V = vector_size<SOURCE, P, X>();
  constexpr int U = unroll<SOURCE, P, X>();
  constexpr int64_t TILE = tile_size<SOURCE, P, X>();
  __shared__ float table[table_size<SOURCE, P, X>()];
  __shared__ float sums[WARPS];
  __shared__ float scales[2];  // of alternate tiles: a slow thread may still read the tile before's
  int slot = 0;
  const int64_t n = p.layout.sample();
  for (int64_t item = blockIdx.x; item < p.layout.batch * tiles; item += gridDim.x) {
    const int64_t b = divide(item, tiles);
    const float incoming = p.incoming.data ? p.incoming.at<float>(b) : float(p.expected);
    if (p.only_unexpected && incoming == float(p.expected)) continue;  // the whole block agrees
    const int64_t begin = (item - b * tiles) * TILE, start = begin + int64_t(threadIdx.x) * V;
    const P* predictions = static_cast<const P*>(p.prediction) + b * n;
    const X* x0 = static_cast<const X*>(p.x0) + b * n;
    P* grad = static_cast<P*>(p.grad) + b * n;
    const float alpha = p.alpha.at<float>(b), sigma = p.sigma.at<float>(b);
    KeyedTile tile;
    if constexpr (SOURCE != Source::stored)
      tile = keyed_tile<SOURCE, TILE>(p.layout, p.noise, b, begin, table);

    P prediction[U][V] = {};
    X clean[U][V] = {}, stored[U][V] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t i = start + u * THREADS * V;
      if (i >= n) continue;
      load<ALIGNED>(prediction[u], predictions, i, n);
      load<ALIGNED>(clean[u], x0, i, n);
      if constexpr (SOURCE == Source::stored)
        load<ALIGNED>(stored[u], static_cast<const X*>(p.noise.eps) + b * n, i, n);
    }
    if (p.grad) {  // one thread divides in float64, while the loads above are under way
      if (threadIdx.x == 0) scales[slot] = float(gradient_scale(incoming, p.weight.at<double>(b), double(n)));
      __syncthreads();
    }
    const float scale = p.grad ? scales[slot] : 0.0f;
    slot ^= 1;
    float sum[1] = {0.0f};
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t i = start + u * THREADS * V;
      if (i >= n) continue;
      float eps[V];
      if constexpr (SOURCE == Source::stored) {
#pragma unroll
        for (int l = 0; l < V; ++l) eps[l] = widen(stored[u][l]);
      } else {
        draw<SOURCE>(eps, tile, i);
      }
      P slope[V];
#pragma unroll
      for (int l = 0; l < V; ++l) {
        const float v = velocity(alpha, widen(clean[u][l]), sigma, eps[l]);
        const float guess = widen(prediction[u][l]);
        if (ALIGNED || i + l < n) sum[0] += loss_term(guess, v);
        slope[l] = narrow<P>(scale * loss_term_derivative(guess, v));
      }
      if (p.grad) store<ALIGNED>(grad, i, n, slope);
    }
    if (p.loss) {
      sum_over_block(sum, sums);
      if (threadIdx.x == 0) static_cast<float*>(p.partial)[item] = sum[0];
    }
  }
}

// One warp per sample adds up its tiles' sums, in float64 and in a fixed order.
__global__ void __launch_bounds__(THREADS) finish_loss_kernel(LossProblem p, int64_t tiles) {
  const int lane = threadIdx.x % WARP;
  const float* partial = static_cast<const float*>(p.partial);
  for (int64_t b = blockIdx.x * int64_t(WARPS) + threadIdx.x / WARP; b < p.layout.batch;
       b += gridDim.x * int64_t(WARPS)) {
    double sum = 0;
    for (int64_t tile = lane; tile < tiles; tile += WARP) sum += partial[b * tiles + tile];
    sum = sum_of_warp(sum);
    if (lane == 0)
      static_cast<float*>(p.loss)[b] =
          float(weighted_mean(p.weight.at<double>(b), sum, double(p.layout.sample())));
  }
}

template <class P, class X, class F>
auto choose(const LossProblem& p, F f) {
  const bool all_aligned = aligned(p.prediction) && aligned(p.x0) && aligned(p.noise.eps) && aligned(p.grad);
  return choose_source(
      p.layout, p.noise, all_aligned, vector_size<Source::stored, P, X>(),
      [&]<Source SOURCE, bool ALIGNED>() { return f.template operator()<P, X, SOURCE, ALIGNED>(); });
}

template <class F>
auto choose(const LossProblem& p, F f) {
  const bool mixed = p.latent_dtype != p.prediction_dtype;
  if (p.prediction_dtype == DType::bf16) return mixed ? choose<bf16, float>(p, f) : choose<bf16, bf16>(p, f);
  if (p.prediction_dtype == DType::f16) return mixed ? choose<f16, float>(p, f) : choose<f16, f16>(p, f);
  return choose<float, float>(p, f);
}

}  // namespace

int64_t loss_partials(const LossProblem& p) {
  constexpr int64_t SMALLEST_TILE = tile_size<Source::keyed_last, float>();
  return p.layout.batch * divide_up(p.layout.sample(), SMALLEST_TILE);
}

cudaError_t loss(const LossProblem& p, cudaStream_t stream) {
  if (p.layout.batch * p.layout.sample() == 0) return cudaSuccess;
  if (p.prediction_dtype == DType::f64) return cudaErrorInvalidValue;
  return choose(p, [&]<class P, class X, Source SOURCE, bool ALIGNED>() {
    const int64_t tiles = divide_up(p.layout.sample(), tile_size<SOURCE, P, X>());
    unsigned blocks = 0;
    if (const cudaError_t error = blocks_for(p.layout.batch * tiles, &blocks)) return error;
    if (const cudaError_t error = launch(loss_kernel<P, X, SOURCE, ALIGNED>, blocks, stream, p, tiles))
      return error;
    if (p.loss == nullptr) return cudaSuccess;
    if (const cudaError_t error = blocks_for(divide_up(p.layout.batch, WARPS), &blocks)) return error;
    return launch(finish_loss_kernel, blocks, stream, p, tiles);
  });
}

}  // namespace refimpl::cuda
