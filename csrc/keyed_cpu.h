// Keyed noise on the CPU: the normals for a range of a sample, written to a small buffer in memory order.
#pragma once

#include <vector>

#include "cpu.h"

namespace refimpl::cpu {

constexpr int64_t GROUP_BLOCKS = 64;  // Philox blocks computed side by side
constexpr int64_t GROUP = 4 * GROUP_BLOCKS;

// Elements [GROUP·g, GROUP·(g + 1)) of a key's noise.
REFIMPL_FN void noise_group(float* out, int64_t g, uint32_t k0, uint32_t k1) {
  const uint64_t first = uint64_t(g) * GROUP_BLOCKS;
  const uint64_t low = uint32_t(first);  // a multiple of GROUP_BLOCKS: adding i never carries
  const uint64_t high = first >> 32;
  alignas(64) uint32_t words[4][GROUP_BLOCKS];
  for (uint64_t i = 0; i < GROUP_BLOCKS; ++i) {
    const Words block = philox4x32<uint64_t>(low + i, high, NOISE_STREAM, 0, k0, k1);
    for (int word = 0; word < 4; ++word) words[word][i] = block.w[word];
  }
  for (int64_t i = 0; i < GROUP_BLOCKS; ++i) {
    const Normals normals = box_muller({{words[0][i], words[1][i], words[2][i], words[3][i]}});
    for (int lane = 0; lane < 4; ++lane) out[4 * i + lane] = normals.z[lane];
  }
}

// Elements [begin, begin + count) of a key's noise, without the offset.
REFIMPL_FN void noise_range(float* out, int64_t begin, int64_t count, uint32_t k0, uint32_t k1) {
  alignas(64) float partial[GROUP];
  const int64_t end = begin + count;
  for (int64_t g = begin / GROUP; g * GROUP < end; ++g) {
    const int64_t from = g * GROUP < begin ? begin : g * GROUP;
    const int64_t to = smaller((g + 1) * GROUP, end);
    if (to - from == GROUP) {
      noise_group(out + (from - begin), g, k0, k1);
    } else {
      noise_group(partial, g, k0, k1);
      memcpy(out + (from - begin), partial + (from - g * GROUP), size_t(to - from) * sizeof(float));
    }
  }
}

// Elements [begin, begin + count) of the logical [C, H, W] order, offset included.
REFIMPL_FN void noise_in_order(float* out, const Layout& layout, const Noise& noise, int64_t b, int64_t begin,
                               int64_t count) {
  const uint32_t k0 = noise.word(b, 0), k1 = noise.word(b, 1);
  noise_range(out, begin, count, k0, k1);
  if (noise.offset == 0) return;
  for (int64_t i = 0; i < count;) {
    const int64_t channel = (begin + i) / layout.area;
    const int64_t stop = smaller((channel + 1) * layout.area - begin, count);
    const float z = offset_normal(uint32_t(channel), k0, k1);
    for (; i < stop; ++i) out[i] = with_offset(out[i], noise.offset, z);
  }
}

REFIMPL_FN void interleave(float* out, const float* planes, int64_t channels, int64_t positions) {
  for (int64_t position = 0; position < positions; ++position)
    for (int64_t c = 0; c < channels; ++c) out[position * channels + c] = planes[c * positions + position];
}

// Work items of a keyed sample: runs of CHUNK elements, or of whole positions if channels-last.
REFIMPL_FN int64_t chunk_positions(const Layout& layout) {
  const int64_t positions = CHUNK / layout.channels;
  return positions < 4 ? 4 : positions;
}

REFIMPL_FN int64_t chunk_elements(const Layout& layout) {
  return layout.channels_last ? chunk_positions(layout) * layout.channels : CHUNK;
}

// Scratch for one thread's keyed_chunk; empty when the noise is stored.
struct KeyedScratch {
  std::vector<float> ordered, planes;

  KeyedScratch(const Layout& layout, const Noise& noise) {
    if (!noise.keyed()) return;
    ordered.resize(size_t(chunk_elements(layout)));
    if (layout.channels_last) planes.resize(ordered.size());
  }
};

// Noise of elements [begin, begin + count) in a sample's memory order; begin is a multiple of chunk_elements.
REFIMPL_FN const float* keyed_chunk(KeyedScratch& scratch, const Layout& layout, const Noise& noise,
                                    int64_t b, int64_t begin, int64_t count) {
  float* ordered = scratch.ordered.data();
  if (!layout.channels_last) {
    noise_in_order(ordered, layout, noise, b, begin, count);
    return ordered;
  }
  float* planes = scratch.planes.data();
  const int64_t position = begin / layout.channels;
  const int64_t positions = count / layout.channels;
  for (int64_t c = 0; c < layout.channels; ++c)
    noise_in_order(planes + c * positions, layout, noise, b, c * layout.area + position, positions);
  if (layout.channels == 4)  // a constant lets the compiler transpose in registers
    interleave(ordered, planes, 4, positions);
  else
    interleave(ordered, planes, layout.channels, positions);
  return ordered;
}

}  // namespace refimpl::cpu
