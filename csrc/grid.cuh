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

// Elements per access of 16 bytes.
template <class X>
constexpr int VECTOR = int(sizeof(Quad) / sizeof(X));

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
      uint4 quad;
      memcpy(&quad, &values[q * PER_QUAD], sizeof quad);
      __stwb(reinterpret_cast<uint4*>(p + i) + q, quad);  // an assignment may become four stores
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

// The same sum in every lane.
template <class T>
__device__ __forceinline__ T sum_over_warp(T value) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(ALL_LANES, value, distance);
  return value;
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

// ---- Tiles ----

enum class Source {
  stored,       // eps is read
  keyed,        // drawn; elements lie in the key's own order
  keyed_last,   // drawn; channels last, any shape: every element draws its block for itself
  keyed_last4,  // drawn; four channels last and H·W a multiple of 4: four blocks give a 4 × 4 tile
};

// Elements per access in a kernel over tensors of types T…: 16 bytes of the narrowest.
template <Source SOURCE, class... T>
constexpr int vector_size() {
  if (SOURCE == Source::keyed_last4) return 16;
  if (SOURCE == Source::keyed_last) return 4;
  size_t narrowest = sizeof(float);
  ((narrowest = sizeof(T) < narrowest ? sizeof(T) : narrowest), ...);
  return int(sizeof(Quad) / narrowest);
}

// Accesses per thread and tile. Four Philox blocks share the work that every tile takes: its sample, its
// scalars and the ten round keys.
template <Source SOURCE, class... T>
constexpr int unroll() {
  if (SOURCE == Source::stored) return 2;
  return SOURCE == Source::keyed ? 16 / vector_size<SOURCE, T...>() : 1;
}

template <Source SOURCE, class... T>
constexpr int64_t tile_size() {
  return int64_t(THREADS) * vector_size<SOURCE, T...>() * unroll<SOURCE, T...>();
}

// Offset normals in a block's table: of all channels that a tile can touch, or, where channels alternate, of
// the first few, which are all as a rule.
template <Source SOURCE, class... T>
constexpr int table_size() {
  if (SOURCE == Source::stored) return 1;
  if (SOURCE == Source::keyed_last4) return 4;
  return SOURCE == Source::keyed_last ? 64 : int(tile_size<SOURCE, T...>());
}

// ---- Noise ----

// The keyed noise of one tile.
struct KeyedTile {
  Layout layout;
  uint32_t k0, k1;
  float factor;        // of the offset noise
  int64_t channel;     // of table[0]
  const float* table;  // shared memory: offset normals
};

// Called by every thread of the block at the start of the tile that begins at element `begin` of sample b;
// the key is the same for all of them.
template <Source SOURCE, int64_t TILE, int TABLE>
__device__ __forceinline__ KeyedTile keyed_tile(const Layout& layout, const Noise& noise, int64_t b,
                                                int64_t begin, float (&table)[TABLE]) {
  const uint32_t k0 = noise.word(b, 0), k1 = noise.word(b, 1);
  int64_t first = 0;
  if (noise.offset != 0) {
    int64_t end = layout.channels;
    if constexpr (SOURCE == Source::keyed) {
      const int64_t last = (begin + TILE < layout.sample() ? begin + TILE : layout.sample()) - 1;
      first = divide(begin, layout.area);
      end = divide(last, layout.area) + 1;
    }
    __syncthreads();  // the tile before may still read the table
    for (int c = threadIdx.x; c < TABLE && first + c < end; c += THREADS)
      table[c] = offset_normal(uint32_t(first + c), k0, k1);
    __syncthreads();
  }
  return {layout, k0, k1, noise.offset, first, table};
}

// eps = the noise of elements [i, i + V) in the sample's memory order; i is a multiple of V.
template <Source SOURCE, int V>
__device__ __forceinline__ void draw(float (&eps)[V], const KeyedTile& tile, int64_t i) {
  const int64_t area = tile.layout.area;
  if constexpr (SOURCE == Source::keyed) {
#pragma unroll
    for (int q = 0; q < V / 4; ++q) {
      const Normals normals = box_muller(keyed_block(uint64_t(i) / 4 + q, NOISE_STREAM, tile.k0, tile.k1));
#pragma unroll
      for (int l = 0; l < 4; ++l) eps[4 * q + l] = normals.z[l];
    }
    if (tile.factor == 0) return;
    const int64_t first = divide(i, area);
    int64_t next = (first + 1) * area;  // the first element of the next channel
    int entry = int(first - tile.channel);
#pragma unroll
    for (int l = 0; l < V; ++l) {
      if (i + l == next) next += area, ++entry;
      eps[l] = with_offset(eps[l], tile.factor, tile.table[entry]);
    }
  } else if constexpr (SOURCE == Source::keyed_last4) {
    static_assert(V == 16);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const Normals normals = box_muller(keyed_block((c * area + i / 4) / 4, NOISE_STREAM, tile.k0, tile.k1));
#pragma unroll
      for (int position = 0; position < 4; ++position)
        eps[4 * position + c] = tile.factor == 0
                                    ? normals.z[position]
                                    : with_offset(normals.z[position], tile.factor, tile.table[c]);
    }
  } else {
#pragma unroll
    for (int l = 0; l < V; ++l) {
      const int64_t position = divide(i + l, tile.layout.channels);
      const int64_t channel = i + l - position * tile.layout.channels;
      const int64_t element = channel * area + position;  // in the logical order [C, H, W]
      const Normals normals = box_muller(keyed_block(element / 4, NOISE_STREAM, tile.k0, tile.k1));
      const int lane = int(element % 4);
      eps[l] = lane == 0 ? normals.z[0] : lane == 1 ? normals.z[1] : lane == 2 ? normals.z[2] : normals.z[3];
      if (tile.factor == 0) continue;
      constexpr int TABLE = table_size<SOURCE>();
      const float z =
          channel < TABLE ? tile.table[channel] : offset_normal(uint32_t(channel), tile.k0, tile.k1);
      eps[l] = with_offset(eps[l], tile.factor, z);
    }
  }
}

// ---- Which kernel ----

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
