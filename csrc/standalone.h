// What csrc/standalone_check.cu checks with: arrays on the device, problems, and comparisons.
#pragma once

#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "launch.h"

namespace refimpl::standalone {

// ---- Memory ----

inline cudaStream_t stream;
inline int compared = 0, wrong = 0;

inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  exit(2);
}

// An array on the device, exactly as large as its values, so that an access beyond its end is one beyond the
// allocation. If `shifted`, it starts one element later than where 16-byte accesses could start.
template <class T>
struct Device {
  size_t count;
  char* memory = nullptr;
  T* data = nullptr;

  Device(size_t count, bool shifted, bool filled) : count(count) {
    const size_t skipped = shifted ? sizeof(T) : 0, bytes = count * sizeof(T);
    require(cudaMalloc(reinterpret_cast<void**>(&memory), bytes + skipped + (bytes == 0)), "cudaMalloc");
    data = reinterpret_cast<T*>(memory + skipped);
    if (filled && bytes) require(cudaMemsetAsync(data, 0xff, bytes, stream), "cudaMemsetAsync");
  }
  Device(const std::vector<T>& values, bool shifted = false) : Device(values.size(), shifted, false) {
    copy(data, values.data(), cudaMemcpyHostToDevice);
  }
  Device(const Device&) = delete;
  ~Device() { require(cudaFree(memory), "cudaFree"); }

  std::vector<T> values() const {
    std::vector<T> result(count);
    copy(result.data(), data, cudaMemcpyDeviceToHost);
    return result;
  }

 private:
  void copy(T* to, const T* from, cudaMemcpyKind kind) const {
    if (count) require(cudaMemcpyAsync(to, from, count * sizeof(T), kind, stream), "cudaMemcpyAsync");
    require(cudaStreamSynchronize(stream), "a kernel");
  }
};

// Results start as NaN, which an element that no thread writes keeps.
template <class T>
Device<T> result(size_t count, bool shifted = false) {
  return Device<T>(count, shifted, true);
}

// Scratch starts uninitialised, so that initcheck sees what is read before it is written.
template <class T>
Device<T> scratch(size_t count) {
  return Device<T>(count, false, false);
}

// ---- Problems ----

struct Case {
  Layout layout;
  bool shifted;  // the tensors are not 16-byte aligned

  size_t count() const { return size_t(layout.batch * layout.sample()); }
  int64_t channel(int64_t i) const {  // of element i of a sample, in memory order
    return layout.channels_last ? i % layout.channels : i / layout.area;
  }
};

constexpr uint32_t KEY = 0x9abcdef0u;
constexpr float OFFSETS[] = {0.0f, 0.05f};

template <class T>
constexpr DType dtype = DType::f32;
template <>
constexpr DType dtype<bf16> = DType::bf16;
template <>
constexpr DType dtype<f16> = DType::f16;

template <class T>
std::vector<T> normals(size_t count, uint32_t seed) {
  std::vector<T> values(count);
  for (size_t i = 0; i < count; ++i)
    values[i] = narrow<T>(box_muller(keyed_block(i / 4, 9, seed, 0)).z[i % 4]);
  return values;
}

template <class T>
std::vector<T> per_sample(const Case& c, double first, double step, int stride = 1) {
  std::vector<T> values(size_t(c.layout.batch) * stride);
  for (size_t i = 0; i < values.size(); ++i) values[i] = T(first + step * double(i / stride % 7));
  return values;
}

inline std::vector<float> squares(std::vector<float> values) {
  for (float& value : values) value *= value;
  return values;
}

inline std::vector<int64_t> keys(const Case& c) {
  std::vector<int64_t> words;
  for (int64_t b = 0; b < c.layout.batch; ++b) words.insert(words.end(), {b, int64_t(KEY)});
  return words;
}

// Element i, in memory order, of the keyed noise of sample b.
inline float keyed_noise(const Case& c, int64_t b, int64_t i, float offset) {
  const int64_t channel = c.channel(i);
  const int64_t j = c.layout.channels_last ? channel * c.layout.area + i / c.layout.channels : i;
  const float z = box_muller(keyed_block(j / 4, NOISE_STREAM, uint32_t(b), KEY)).z[j % 4];
  return offset == 0 ? z : with_offset(z, offset, offset_normal(uint32_t(channel), uint32_t(b), KEY));
}

template <class X>
std::vector<float> noise_of(const Case& c, const std::vector<X>* eps, float offset) {
  std::vector<float> values(c.count());
  for (size_t k = 0; k < values.size(); ++k) {
    const int64_t n = c.layout.sample(), b = int64_t(k) / n;
    values[k] = eps ? widen((*eps)[k]) : keyed_noise(c, b, int64_t(k) % n, offset);
  }
  return values;
}

inline void report(const Case& c, const char* what, size_t i, double got, double wanted) {
  fprintf(stderr, "%s of [%lld, %lld, %lld]%s%s: element %zu is %.9g and should be %.9g\n", what,
          (long long)c.layout.batch, (long long)c.layout.channels, (long long)c.layout.area,
          c.layout.channels_last ? ", channels last" : "", c.shifted ? ", unaligned" : "", i, got, wanted);
  ++wrong;
}

// Says where `got` first differs from `wanted` by a bit.
template <class T>
void expect_bits(const Case& c, const char* what, const std::vector<T>& got, const std::vector<T>& wanted) {
  ++compared;
  for (size_t i = 0; i < wanted.size(); ++i)
    if (memcmp(&got[i], &wanted[i], sizeof(T)) != 0)
      return report(c, what, i, widen(got[i]), widen(wanted[i]));
}

// Says where `got` first differs from `wanted` by more than `relative` of `scale`.
template <class T>
void expect_close(const Case& c, const char* what, const std::vector<T>& got,
                  const std::vector<double>& wanted, const std::vector<double>& scale, double relative) {
  ++compared;
  for (size_t i = 0; i < wanted.size(); ++i)
    if (!(fabs(double(got[i]) - wanted[i]) <= relative * scale[i]))
      return report(c, what, i, double(got[i]), wanted[i]);
}

}  // namespace refimpl::standalone
