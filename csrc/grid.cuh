// What the CUDA kernels share: the grid, 16-byte accesses, block reductions, and keyed noise in registers.
//
// A kernel's work is split into tiles, each of one sample. A block processes tiles blockIdx.x, blockIdx.x +
// gridDim.x, … (a grid-stride loop); in a tile, each thread handles V adjacent elements (16 bytes of the
// narrowest tensor), U times.
#pragma once

#include "launch.h"

namespace refimpl::cuda {

constexpr int THREADS = 256;
constexpr int WARP = 32;
constexpr int WARPS = THREADS / WARP;
constexpr unsigned ALL_LANES = 0xffffffffu;

REFIMPL_FN int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// 64-bit division takes about a hundred instructions; most operands fit in 32 bits.
REFIMPL_FN int64_t divide(int64_t a, int64_t b) {
  return ((a | b) >> 31) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

inline cudaError_t blocks_for(int64_t items, unsigned* blocks) {
  int device = 0, multiprocessors = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device))
    return error;
  const int64_t most = int64_t(multiprocessors) * 32;  // four rounds of eight resident blocks
  *blocks = unsigned(items < most ? items : most);
  return cudaSuccess;
}

#if defined(__CUDACC__)
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), unsigned blocks, cudaStream_t stream,
                   Arguments... arguments) {
  kernel<<<blocks, THREADS, 0, stream>>>(arguments...);
  return cudaGetLastError();
}
#endif

// ---- Memory ----

struct alignas(16) Quad {
  uint32_t words[4];
};

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(Quad) == 0; }

// values = p[i … i + V); if not ALIGNED, elements from n on are left unchanged (with ALIGNED, n is a multiple
// of V).
template <bool ALIGNED, int V, class T>
__device__ __forceinline__ void load(T (&values)[V], const T* p, int64_t i, int64_t n) {
  if constexpr (ALIGNED) {
    constexpr int PER_QUAD = sizeof(Quad) / sizeof(T);
    static_assert(V % PER_QUAD == 0);
#pragma unroll
    for (int q = 0; q < V / PER_QUAD; ++q) {
      const Quad quad = reinterpret_cast<const Quad*>(p + i)[q];
      memcpy(&values[q * PER_QUAD], &quad, sizeof quad);
    }
  } else {
#pragma unroll
    for (int l = 0; l < V; ++l)
      if (i + l < n) values[l] = p[i + l];
  }
}

template <bool ALIGNED, int V, class T>
__device__ __forceinline__ void store(T* p, int64_t i, int64_t n, const T (&values)[V]) {
  if constexpr (ALIGNED) {
    constexpr int PER_QUAD = sizeof(Quad) / sizeof(T);
#pragma unroll
    for (int q = 0; q < V / PER_QUAD; ++q) {
      Quad quad;
      memcpy(&quad, &values[q * PER_QUAD], sizeof quad);
#if defined(__CUDA_ARCH__)  // an assignment the compiler splits into four stores of 4 bytes here and there
      const uint32_t* w = quad.words;
      __stwb(reinterpret_cast<uint4*>(p + i) + q, make_uint4(w[0], w[1], w[2], w[3]));
#else
      reinterpret_cast<Quad*>(p + i)[q] = quad;
#endif
    }
  } else {
#pragma unroll
    for (int l = 0; l < V; ++l)
      if (i + l < n) p[i + l] = values[l];
  }
}

// ---- Sums in a fixed order ----

template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2)
    value += __shfl_down_sync(ALL_LANES, value, distance);
  return value;  // in lane 0
}

// Sums `values` over the block, with the result in every thread; `shared` holds N · WARPS values.
template <int N, class T>
__device__ __forceinline__ void sum_over_block(T (&values)[N], T* shared) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    values[k] = sum_of_warp(values[k]);
    if (lane == 0) shared[k * WARPS + warp] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < N; ++k) {
    values[k] = shared[k * WARPS];
#pragma unroll
    for (int w = 1; w < WARPS; ++w) values[k] += shared[k * WARPS + w];
  }
  __syncthreads();  // shared may be written again
}

// ---- Noise ----

enum class Source {
  stored,       // eps is read
  keyed,        // drawn; elements lie in the key's own order
  keyed_last,   // drawn; channels last, any shape: every element draws its block for itself
  keyed_last4,  // drawn; four channels last and H·W a multiple of 4: four blocks give a 4 × 4 tile
};

constexpr int OFFSET_TABLE = 64;  // channels whose offset a block draws once per tile

// The keyed noise of one sample.
struct KeyedSample {
  Layout layout;
  uint32_t k0, k1;
  float factor;        // of the offset noise
  const float* table;  // shared memory: offset normals of the first OFFSET_TABLE channels

  __device__ __forceinline__ float with_offset_of(float eps, int64_t channel) const {
    if (factor == 0) return eps;
    return with_offset(eps, factor, channel < OFFSET_TABLE ? table[channel] : offset_normal(channel, k0, k1));
  }
};

// Called by every thread of the block at the start of a tile; the key is the same for all of them.
__device__ __forceinline__ KeyedSample keyed_sample(const Layout& layout, const Noise& noise, int64_t b,
                                                    float* table) {
  const KeyedSample sample = {layout, noise.word(b, 0), noise.word(b, 1), noise.offset, table};
  if (noise.offset != 0) {
    __syncthreads();  // the tile before may still read the table
    if (threadIdx.x < OFFSET_TABLE && threadIdx.x < layout.channels)
      table[threadIdx.x] = offset_normal(threadIdx.x, sample.k0, sample.k1);
    __syncthreads();
  }
  return sample;
}

// eps = the noise of elements [i, i + V) in the sample's memory order; i is a multiple of V.
template <Source SOURCE, int V>
__device__ __forceinline__ void draw(float (&eps)[V], const KeyedSample& sample, int64_t i) {
  const int64_t area = sample.layout.area;
  if constexpr (SOURCE == Source::keyed) {
#pragma unroll
    for (int q = 0; q < V / 4; ++q) {
      const Normals normals = box_muller(keyed_block(i / 4 + q, NOISE_STREAM, sample.k0, sample.k1));
#pragma unroll
      for (int l = 0; l < 4; ++l) eps[4 * q + l] = normals.z[l];
    }
    if (sample.factor == 0) return;
    const int64_t first = divide(i, area);
    const bool one_channel = i + V <= (first + 1) * area;
#pragma unroll
    for (int l = 0; l < V; ++l)
      eps[l] = sample.with_offset_of(eps[l], one_channel ? first : divide(i + l, area));
  } else if constexpr (SOURCE == Source::keyed_last4) {
    static_assert(V == 16);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const Normals normals =
          box_muller(keyed_block((c * area + i / 4) / 4, NOISE_STREAM, sample.k0, sample.k1));
#pragma unroll
      for (int position = 0; position < 4; ++position)
        eps[4 * position + c] = sample.with_offset_of(normals.z[position], c);
    }
  } else {
#pragma unroll
    for (int l = 0; l < V; ++l) {
      const int64_t position = divide(i + l, sample.layout.channels);
      const int64_t channel = i + l - position * sample.layout.channels;
      const int64_t element = channel * area + position;  // in the logical order [C, H, W]
      const Normals normals = box_muller(keyed_block(element / 4, NOISE_STREAM, sample.k0, sample.k1));
      const int lane = int(element % 4);
      const float z = lane == 0   ? normals.z[0]
                      : lane == 1 ? normals.z[1]
                      : lane == 2 ? normals.z[2]
                                  : normals.z[3];
      eps[l] = sample.with_offset_of(z, channel);
    }
  }
}

// ---- Which kernel ----

// Elements per access in a kernel over tensors of types T…: 16 bytes of the narrowest.
template <Source SOURCE, class... T>
constexpr int vector_size() {
  if (SOURCE == Source::keyed_last4) return 16;
  if (SOURCE == Source::keyed_last) return 4;
  size_t narrowest = sizeof(float);
  ((narrowest = sizeof(T) < narrowest ? sizeof(T) : narrowest), ...);
  return int(sizeof(Quad) / narrowest);
}

constexpr int unroll(Source source) { return source == Source::stored ? 2 : 1; }

template <Source SOURCE, class... T>
constexpr int64_t tile_size() {
  return int64_t(THREADS) * vector_size<SOURCE, T...>() * unroll(SOURCE);
}

// Calls f.template operator()<SOURCE, ALIGNED>() for the kernel that fits the layout and the pointers.
// `vector` is the number of elements per access when contiguous.
template <class F>
auto choose_source(const Layout& layout, const Noise& noise, bool all_aligned, int64_t vector, F f) {
  const bool whole = all_aligned && layout.sample() % vector == 0;
  if (!noise.keyed())
    return whole ? f.template operator()<Source::stored, true>()
                 : f.template operator()<Source::stored, false>();
  if (!layout.channels_last)
    return whole ? f.template operator()<Source::keyed, true>()
                 : f.template operator()<Source::keyed, false>();
  if (all_aligned && layout.channels == 4 && layout.area % 4 == 0)
    return f.template operator()<Source::keyed_last4, true>();
  return f.template operator()<Source::keyed_last, false>();
}

}  // namespace refimpl::cuda
