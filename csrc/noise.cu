// add_noise, add_keyed_noise and keyed_normal on CUDA (N §2.1, S §2.5).
#include "grid.cuh"

namespace refimpl::cuda {
namespace {

template <class X, Source SOURCE, bool ALIGNED>
__global__ void __launch_bounds__(THREADS, 3) noise_kernel(NoiseProblem p, int64_t tiles) {
  constexpr int V = vector_size<SOURCE, X>();
  constexpr int U = unroll<SOURCE, X>();
  constexpr int64_t TILE = tile_size<SOURCE, X>();
  __shared__ float table[table_size<SOURCE, X>()];
  const int64_t n = p.layout.sample();
  for (int64_t item = blockIdx.x; item < p.layout.batch * tiles; item += gridDim.x) {
    const int64_t b = divide(item, tiles);
    const int64_t begin = (item - b * tiles) * TILE, start = begin + int64_t(threadIdx.x) * V;
    const X* x0 = static_cast<const X*>(p.x0) + b * n;
    X* out = static_cast<X*>(p.out) + b * n;
    KeyedTile tile;
    if constexpr (SOURCE != Source::stored)
      tile = keyed_tile<SOURCE, TILE>(p.layout, p.noise, b, begin, table);
    const bool only_noise = p.x0 == nullptr;
    const float alpha = only_noise ? 0.0f : p.alpha.at<float>(b),
                sigma = only_noise ? 1.0f : p.sigma.at<float>(b);

    X clean[U][V] = {}, stored[U][V] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t i = start + u * THREADS * V;
      if (i >= n) continue;
      if (!only_noise) load<ALIGNED>(clean[u], x0, i, n);
      if constexpr (SOURCE == Source::stored)
        load<ALIGNED>(stored[u], static_cast<const X*>(p.noise.eps) + b * n, i, n);
    }
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
      X x_t[V];
#pragma unroll
      for (int l = 0; l < V; ++l) x_t[l] = narrow<X>(noised(alpha, widen(clean[u][l]), sigma, eps[l]));
      store<ALIGNED>(out, i, n, x_t);
    }
  }
}

template <class X>
cudaError_t noise_of(const NoiseProblem& p, cudaStream_t stream) {
  const bool all_aligned = aligned(p.x0) && aligned(p.noise.eps) && aligned(p.out);
  return choose_source(p.layout, p.noise, all_aligned, vector_size<Source::stored, X>(),
                       [&]<Source SOURCE, bool ALIGNED>() {
                         const int64_t tiles = divide_up(p.layout.sample(), tile_size<SOURCE, X>());
                         unsigned blocks = 0;
                         if (const cudaError_t error = blocks_for(p.layout.batch * tiles, &blocks))
                           return error;
                         return launch(noise_kernel<X, SOURCE, ALIGNED>, blocks, stream, p, tiles);
                       });
}

}  // namespace

cudaError_t noise(const NoiseProblem& p, cudaStream_t stream) {
  if (p.layout.batch * p.layout.sample() == 0) return cudaSuccess;
  switch (p.x0 == nullptr ? DType::f32 : p.dtype) {
    case DType::f32: return noise_of<float>(p, stream);
    case DType::bf16: return noise_of<bf16>(p, stream);
    case DType::f16: return noise_of<f16>(p, stream);
    case DType::f64: break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace refimpl::cuda
