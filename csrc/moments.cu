// channel_moments on CUDA: two passes over a tile in registers, tiles merged by Chan's rule (N App. B).
#include "grid.cuh"

namespace refimpl::cuda {
namespace {

// How the elements of a channel are laid out in memory.
enum class Order {
  plane,  // one after the other: a tile is part of one (sample, channel) plane
  last4,  // four channels last: a tile is positions of one sample, all four channels
  last,   // any number of channels last: a tile is positions of one (sample, channel), strided
};

template <Order ORDER, class X>
constexpr int vector_size() {
  return ORDER == Order::last ? 1 : int(sizeof(Quad) / sizeof(X));
}

constexpr int UNROLL = 4;

template <Order ORDER, class X>
constexpr int64_t tile_size() {
  return int64_t(THREADS) * UNROLL * vector_size<ORDER, X>();
}

// Elements in the row that tiles divide: a plane, a whole sample, or a strided channel.
template <Order ORDER>
REFIMPL_FN int64_t row_size(const Layout& layout) {
  return ORDER == Order::last4 ? layout.sample() : layout.area;
}

template <Order ORDER>
REFIMPL_FN int64_t rows(const Layout& layout) {
  return ORDER == Order::last4 ? layout.batch : layout.batch * layout.channels;
}

template <class X, Order ORDER, bool ALIGNED>
__global__ void __launch_bounds__(THREADS, 2) moments_kernel(MomentsProblem p, int64_t tiles) {
  constexpr int V = vector_size<ORDER, X>();
  constexpr int CHANNELS = ORDER == Order::last4 ? 4 : 1;  // of one tile
  __shared__ double shared[CHANNELS * WARPS];
  const Layout layout = p.layout;
  const int64_t n = row_size<ORDER>(layout);
  for (int64_t item = blockIdx.x; item < rows<ORDER>(layout) * tiles; item += gridDim.x) {
    const int64_t row = divide(item, tiles), tile = item - row * tiles;
    const int64_t begin = tile * tile_size<ORDER, X>();
    const int64_t start = begin + int64_t(threadIdx.x) * V;
    const int64_t rest = n - begin;
    const double count = double((rest < tile_size<ORDER, X>() ? rest : tile_size<ORDER, X>()) / CHANNELS);

    double values[UNROLL][V];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const int64_t i = start + u * THREADS * V;
      X raw[V] = {};
      if constexpr (ORDER == Order::last) {
        const int64_t b = divide(row, layout.channels), channel = row - b * layout.channels;
        if (i < n) raw[0] = static_cast<const X*>(p.x)[(b * layout.area + i) * layout.channels + channel];
      } else {
        if (i < n) load<ALIGNED>(raw, static_cast<const X*>(p.x) + row * n, i, n);
      }
#pragma unroll
      for (int l = 0; l < V; ++l) values[u][l] = double(widen(raw[l]));
    }

    double mean[CHANNELS] = {};
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
#pragma unroll
      for (int l = 0; l < V; ++l) mean[l % CHANNELS] += values[u][l];  // 0 beyond the end
    sum_over_block(mean, shared);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) mean[c] /= count;

    double m2[CHANNELS] = {};
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
#pragma unroll
      for (int l = 0; l < V; ++l) {
        const double deviation = values[u][l] - mean[l % CHANNELS];
        if (start + u * THREADS * V + l < n) m2[l % CHANNELS] = fused(deviation, deviation, m2[l % CHANNELS]);
      }
    sum_over_block(m2, shared);
    if (threadIdx.x == 0)
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c)
        p.partial[(row * CHANNELS + c) * tiles + tile] = {count, mean[c], m2[c]};
  }
}

// One block per channel merges the tiles of all samples, in a fixed order.
__global__ void __launch_bounds__(THREADS, 2) finish_moments_kernel(MomentsProblem p, int64_t tiles) {
  __shared__ Moments shared[THREADS];
  const Layout layout = p.layout;
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.count = double(layout.batch) * double(layout.area);
  for (int64_t channel = blockIdx.x; channel < layout.channels; channel += gridDim.x) {
    Moments total = {0, 0, 0};
    for (int64_t k = threadIdx.x; k < layout.batch * tiles; k += THREADS) {
      const int64_t b = divide(k, tiles);
      total = welford_merge(total, p.partial[(b * layout.channels + channel) * tiles + (k - b * tiles)]);
    }
    shared[threadIdx.x] = total;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
      if (int(threadIdx.x) < half)
        shared[threadIdx.x] = welford_merge(shared[threadIdx.x], shared[threadIdx.x + half]);
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      p.mean[channel] = shared[0].mean;
      p.m2[channel] = shared[0].m2;
    }
    __syncthreads();
  }
}

template <class X, class F>
auto choose(const MomentsProblem& p, F f) {
  const Layout& layout = p.layout;
  constexpr int V = vector_size<Order::plane, X>();
  if (!layout.channels_last)
    return aligned(p.x) && layout.area % V == 0 ? f.template operator()<X, Order::plane, true>()
                                                : f.template operator()<X, Order::plane, false>();
  if (aligned(p.x) && layout.channels == 4 && layout.sample() % V == 0)
    return f.template operator()<X, Order::last4, true>();
  return f.template operator()<X, Order::last, false>();
}

template <class F>
auto choose(const MomentsProblem& p, F f) {
  if (p.dtype == DType::bf16) return choose<bf16>(p, f);
  if (p.dtype == DType::f16) return choose<f16>(p, f);
  return choose<float>(p, f);
}

}  // namespace

int64_t moments_partials(const MomentsProblem& p) {
  return choose(p, [&]<class X, Order ORDER, bool ALIGNED>() {
    return p.layout.batch * p.layout.channels * divide_up(row_size<ORDER>(p.layout), tile_size<ORDER, X>());
  });
}

cudaError_t moments(const MomentsProblem& p, cudaStream_t stream) {
  if (p.dtype == DType::f64) return cudaErrorInvalidValue;
  return choose(p, [&]<class X, Order ORDER, bool ALIGNED>() {
    const int64_t tiles = divide_up(row_size<ORDER>(p.layout), tile_size<ORDER, X>());
    const int64_t items = rows<ORDER>(p.layout) * tiles;
    unsigned blocks = 0;
    if (items > 0) {
      if (const cudaError_t error = blocks_for(items, &blocks)) return error;
      if (const cudaError_t error = launch(moments_kernel<X, ORDER, ALIGNED>, blocks, stream, p, tiles))
        return error;
    }
    if (const cudaError_t error = blocks_for(p.layout.channels > 0 ? p.layout.channels : 1, &blocks))
      return error;
    return launch(finish_moments_kernel, blocks, stream, p, tiles);
  });
}

}  // namespace refimpl::cuda
