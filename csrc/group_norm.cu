// group_norm_silu on CUDA: sums per channel over tiles of positions, merged per group, then one pass that
// normalises; going back likewise (Wu & He 2018, eq. 1).
#include "group_norm.cuh"

namespace refimpl::cuda {
namespace {

// Going forward, Σ (x − shift) and Σ (x − shift)² of a channel over a tile, where shift is its first element;
// going back, Σ dz and Σ dz·(x − mean).
template <class X, int V, bool LAST, bool BACK>
__global__ void __launch_bounds__(THREADS)
    sums_kernel(GroupNormProblem p, Walk<X, V, LAST> walk, int64_t items) {
  constexpr int CHANNELS = Walk<X, V, LAST>::CHANNELS;
  __shared__ float shared[2][LAST ? THREADS * V : 1];
  const X* x = static_cast<const X*>(p.x);
  const X* g = static_cast<const X*>(p.incoming);
  float* partial = static_cast<float*>(p.partial);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Place place = place_of(walk, p.layout, item);
    float first[CHANNELS] = {}, second[CHANNELS] = {};
    if (place.active) {
      ChannelNorm<float> norm[CHANNELS];
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        if constexpr (BACK)
          norm[c] = channel_norm(p, place.b, place.channel + c);
        else
          norm[c].mean = widen(x[place.base + c]);
      }
      for (int64_t i = place.position; i < place.end; i += place.step) {
        X values[V], incoming[V];
        load<(V > 1)>(values, x, place.base + place.stride * i, INT64_MAX);
        if constexpr (BACK) load<(V > 1)>(incoming, g, place.base + place.stride * i, INT64_MAX);
#pragma unroll
        for (int l = 0; l < V; ++l) {
          const int c = LAST ? l : 0;
          const float value = widen(values[l]), deviation = value - norm[c].mean;
          const float term =
              BACK ? widen(incoming[l]) * silu_derivative(normalised(value, norm[c])) : deviation;
          first[c] += term;
          second[c] = fused(term, deviation, second[c]);
        }
      }
    }
    float* sums = partial + 2 * ((place.b * walk.tiles + place.tile) * p.layout.channels + place.channel);
    if constexpr (LAST) {
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        shared[0][threadIdx.x * V + c] = first[c];
        shared[1][threadIdx.x * V + c] = second[c];
      }
      __syncthreads();
      if (place.active && threadIdx.x < walk.columns)
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
          for (int row = 1; row < walk.rows; ++row) {
            first[c] += shared[0][(row * walk.columns + threadIdx.x) * V + c];
            second[c] += shared[1][(row * walk.columns + threadIdx.x) * V + c];
          }
          sums[2 * c] = first[c];
          sums[2 * c + 1] = second[c];
        }
      __syncthreads();
    } else {
      first[0] = sum_of_warp(first[0]);
      second[0] = sum_of_warp(second[0]);
      if (place.active && threadIdx.x % WARP == 0) {
        sums[0] = first[0];
        sums[1] = second[0];
      }
    }
  }
}

// One warp per group merges its channels' tiles, in float64 and in a fixed order.
template <class X>
__global__ void __launch_bounds__(THREADS)
    statistics_kernel(GroupNormProblem p, int64_t tile, int64_t tiles) {
  const Layout layout = p.layout;
  const int64_t groups = layout.batch * p.groups, size = p.group_size();
  const float* partial = static_cast<const float*>(p.partial);
  const int lane = threadIdx.x % WARP;
  for (int64_t group = blockIdx.x * int64_t(WARPS) + threadIdx.x / WARP; group < groups;
       group += gridDim.x * int64_t(WARPS)) {
    const int64_t b = group / p.groups, channel = group % p.groups * size;
    Moments total = {0, 0, 0};
    for (int64_t k = lane; k < tiles * size; k += WARP) {
      const int64_t t = k / size, c = channel + k % size;
      const float* sums = partial + 2 * ((b * tiles + t) * layout.channels + c);
      const int64_t rest = layout.area - t * tile;
      const double count = double(rest < tile ? rest : tile), first = sums[0], second = sums[1];
      const int64_t start =
          layout.channels_last ? b * layout.sample() + c : (b * layout.channels + c) * layout.area;
      const double shift = widen(static_cast<const X*>(p.x)[start]);
      total = welford_merge(total, {count, shift + first / count, second - first * first / count});
    }
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
      const Moments other = {__shfl_down_sync(ALL_LANES, total.count, distance),
                             __shfl_down_sync(ALL_LANES, total.mean, distance),
                             __shfl_down_sync(ALL_LANES, total.m2, distance)};
      total = welford_merge(total, other);
    }
    if (lane == 0) {
      static_cast<float*>(p.mean)[group] = float(total.mean);
      static_cast<float*>(p.deviation)[group] =
          float(reciprocal_deviation(total.m2 < 0 ? 0 : total.m2, total.count, p.eps));
    }
  }
}

// Σ over the tiles of each channel of each sample, in float64; Σ dz·(x − mean) divided by the deviation.
__global__ void __launch_bounds__(THREADS)
    channels_kernel(GroupNormProblem p, int64_t tiles, double* totals) {
  const Layout layout = p.layout;
  for (int64_t k = blockIdx.x * int64_t(THREADS) + threadIdx.x; k < layout.batch * layout.channels;
       k += gridDim.x * int64_t(THREADS)) {
    const int64_t b = k / layout.channels, c = k % layout.channels;
    double first = 0, second = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const float* sums = static_cast<const float*>(p.partial) + 2 * ((b * tiles + t) * layout.channels + c);
      first += sums[0];
      second += sums[1];
    }
    totals[2 * k] = first;
    totals[2 * k + 1] =
        second * double(static_cast<const float*>(p.deviation)[b * p.groups + c / p.group_size()]);
  }
}

// The gradients by weight and bias of each channel, and the two means of each group, in a fixed order.
__global__ void __launch_bounds__(THREADS)
    gradients_kernel(GroupNormProblem p, const double* totals, float* shares) {
  const Layout layout = p.layout;
  const int64_t size = p.group_size(), groups = layout.batch * p.groups;
  for (int64_t k = blockIdx.x * int64_t(THREADS) + threadIdx.x; k < layout.channels + groups;
       k += gridDim.x * int64_t(THREADS)) {
    double first = 0, second = 0;
    if (k < layout.channels) {
      for (int64_t b = 0; b < layout.batch; ++b) {
        first += totals[2 * (b * layout.channels + k)];
        second += totals[2 * (b * layout.channels + k) + 1];
      }
      static_cast<float*>(p.by_bias)[k] = float(first);
      static_cast<float*>(p.by_weight)[k] = float(second);
      continue;
    }
    const int64_t group = k - layout.channels, b = group / p.groups, channel = group % p.groups * size;
    for (int64_t c = channel; c < channel + size; ++c) {
      const double weight = static_cast<const float*>(p.weight)[c];
      first += weight * totals[2 * (b * layout.channels + c)];
      second += weight * totals[2 * (b * layout.channels + c) + 1];
    }
    const double deviation = static_cast<const float*>(p.deviation)[group],
                 n = double(size) * double(layout.area);
    shares[2 * group] = float(first / n * deviation);
    shares[2 * group + 1] = float(second / n * deviation * deviation);
  }
}

template <class X, int V, bool LAST, bool BACK>
__global__ void __launch_bounds__(THREADS)
    apply_kernel(GroupNormProblem p, Walk<X, V, LAST> walk, int64_t items, const float* shares) {
  constexpr int CHANNELS = Walk<X, V, LAST>::CHANNELS;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Place place = place_of(walk, p.layout, item);
    if (!place.active) continue;
    ChannelNorm<float> norm[CHANNELS];
    float share[CHANNELS], slope[CHANNELS];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      norm[c] = channel_norm(p, place.b, place.channel + c);
      if constexpr (BACK) {
        const int64_t group = place.b * p.groups + divide(place.channel + c, p.group_size());
        share[c] = shares[2 * group];
        slope[c] = shares[2 * group + 1];
      }
    }
    for (int64_t i = place.position; i < place.end; i += place.step) {
      const int64_t at = place.base + place.stride * i;
      X values[V], incoming[V], results[V];
      load<(V > 1)>(values, static_cast<const X*>(p.x), at, INT64_MAX);
      if constexpr (BACK) load<(V > 1)>(incoming, static_cast<const X*>(p.incoming), at, INT64_MAX);
#pragma unroll
      for (int l = 0; l < V; ++l) {
        const int c = LAST ? l : 0;
        const float value = widen(values[l]), z = normalised(value, norm[c]);
        if constexpr (BACK)
          results[l] = narrow<X>(
              norm_slope(value, widen(incoming[l]) * silu_derivative(z), norm[c], share[c], slope[c]));
        else
          results[l] = narrow<X>(silu(z));
      }
      store<(V > 1)>(static_cast<X*>(p.out), at, INT64_MAX, results);
    }
  }
}

// Scratch in float64 values: each tile's two sums, then each channel's totals and each group's two means.
template <class X, int V, bool LAST>
int64_t tile_values(const GroupNormProblem& p) {
  return Walk<X, V, LAST>(p.layout).tiles * p.layout.batch * p.layout.channels;
}

template <class X, int V, bool LAST, bool BACK>
cudaError_t run(const GroupNormProblem& p, cudaStream_t stream) {
  const Walk<X, V, LAST> walk(p.layout);
  const int64_t items = walk.items(p.layout), groups = p.layout.batch * p.groups;
  double* totals = static_cast<double*>(p.partial) + tile_values<X, V, LAST>(p);
  float* shares = reinterpret_cast<float*>(totals + 2 * p.layout.batch * p.layout.channels);
  unsigned wide = 0, narrow_blocks = 0;
  if (const cudaError_t error = blocks_for(items, &wide)) return error;
  if (const cudaError_t error = launch(sums_kernel<X, V, LAST, BACK>, wide, stream, p, walk, items))
    return error;
  if constexpr (BACK) {
    if (const cudaError_t error =
            blocks_for(divide_up(p.layout.batch * p.layout.channels, THREADS), &narrow_blocks))
      return error;
    if (const cudaError_t error = launch(channels_kernel, narrow_blocks, stream, p, walk.tiles, totals))
      return error;
    if (const cudaError_t error = blocks_for(divide_up(p.layout.channels + groups, THREADS), &narrow_blocks))
      return error;
    if (const cudaError_t error =
            launch(gradients_kernel, narrow_blocks, stream, p, static_cast<const double*>(totals), shares))
      return error;
  } else {
    if (const cudaError_t error = blocks_for(divide_up(groups, WARPS), &narrow_blocks)) return error;
    if (const cudaError_t error =
            launch(statistics_kernel<X>, narrow_blocks, stream, p, walk.tile, walk.tiles))
      return error;
  }
  return launch(apply_kernel<X, V, LAST, BACK>, wide, stream, p, walk, items,
                static_cast<const float*>(shares));
}

// Calls f.template operator()<X, V, LAST>() for the kernels that fit the layout and the pointers.
template <class X, class F>
auto choose(const GroupNormProblem& p, F f) {
  constexpr int V = int(sizeof(Quad) / sizeof(X));
  const Layout& layout = p.layout;
  const bool all_aligned = aligned(p.x) && aligned(p.incoming) && aligned(p.out);
  if (layout.channels_last)
    return all_aligned && layout.channels % V == 0 ? f.template operator()<X, V, true>()
                                                   : f.template operator()<X, 1, true>();
  return all_aligned && layout.area % V == 0 ? f.template operator()<X, V, false>()
                                             : f.template operator()<X, 1, false>();
}

template <class F>
auto choose(const GroupNormProblem& p, F f) {
  if (p.dtype == DType::bf16) return choose<bf16>(p, f);
  if (p.dtype == DType::f16) return choose<f16>(p, f);
  return choose<float>(p, f);
}

}  // namespace

int64_t group_norm_partials(const GroupNormProblem& p) {
  return choose(p, [&]<class X, int V, bool LAST>() {
    return tile_values<X, V, LAST>(p) + 2 * p.layout.batch * p.layout.channels + p.layout.batch * p.groups;
  });
}

cudaError_t group_norm_silu(const GroupNormProblem& p, cudaStream_t stream) {
  if (p.layout.batch * p.layout.sample() == 0) return cudaSuccess;
  if (p.dtype == DType::f64) return cudaErrorInvalidValue;
  return choose(p, [&]<class X, int V, bool LAST>() {
    return p.incoming == nullptr ? run<X, V, LAST, false>(p, stream) : run<X, V, LAST, true>(p, stream);
  });
}

}  // namespace refimpl::cuda
