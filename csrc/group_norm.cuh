// How the threads of group_norm.cu lie over a sample, in both memory orders, and what a channel needs of its
// group.
#pragma once

#include "grid.cuh"

namespace refimpl::cuda {

// How a kernel's threads lie over a sample. Contiguous: a warp takes `tile` positions of one channel.
// Channels last: a block takes `tile` positions of a slab of channels, `columns` accesses wide; its threads
// stand in `rows` rows, one under the other.
template <class X, int V, bool LAST>
struct Walk {
  static constexpr int CHANNELS = LAST ? V : 1;  // of a thread
  int64_t tile, tiles, slabs;
  int columns, rows;

  explicit Walk(const Layout& layout) {
    if constexpr (LAST) {
      const int64_t accesses = divide_up(layout.channels, V);
      slabs = divide_up(accesses, THREADS);
      columns = int(divide_up(accesses, slabs));
      rows = THREADS / columns;
      tile = 16 * rows;
    } else {
      slabs = divide_up(layout.channels, WARPS);
      columns = WARP;
      rows = WARPS;
      tile = 8 * WARP * V;
    }
    tiles = divide_up(layout.area, tile);
  }

  int64_t items(const Layout& layout) const { return layout.batch * tiles * slabs; }
};

// The place of one thread in one item.
struct Place {
  bool active;
  int64_t b, tile, channel;     // its first channel
  int64_t position, end, step;  // its positions
  int64_t base, stride;         // element of a position: base + stride·position
};

template <class X, int V, bool LAST>
__device__ __forceinline__ Place place_of(const Walk<X, V, LAST>& walk, const Layout& layout, int64_t item) {
  const int64_t slab = item % walk.slabs, row_of_tiles = item / walk.slabs;
  Place place;
  place.tile = row_of_tiles % walk.tiles;
  place.b = row_of_tiles / walk.tiles;
  const int64_t begin = place.tile * walk.tile;
  place.end = begin + walk.tile < layout.area ? begin + walk.tile : layout.area;
  if constexpr (LAST) {
    const int row = threadIdx.x / walk.columns, column = threadIdx.x - row * walk.columns;
    place.channel = (slab * walk.columns + column) * V;
    place.active = row < walk.rows && place.channel < layout.channels;
    place.position = begin + row;
    place.step = walk.rows;
    place.base = place.b * layout.sample() + place.channel;
    place.stride = layout.channels;
  } else {
    place.channel = slab * WARPS + threadIdx.x / WARP;
    place.active = place.channel < layout.channels;
    place.position = begin + threadIdx.x % WARP * V;
    place.step = WARP * V;
    place.base = (place.b * layout.channels + place.channel) * layout.area;
    place.stride = 1;
  }
  return place;
}

__device__ __forceinline__ ChannelNorm<float> channel_norm(const GroupNormProblem& p, int64_t b,
                                                           int64_t channel) {
  const int64_t group = b * p.groups + divide(channel, p.group_size());
  return {static_cast<const float*>(p.mean)[group],
          static_cast<const float*>(p.deviation)[group] * static_cast<const float*>(p.weight)[channel],
          static_cast<const float*>(p.bias)[channel]};
}

}  // namespace refimpl::cuda
