// Number formats of the tensors, widened exactly to the float or double of the arithmetic and rounded back.
#pragma once

#include "network_formulas.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace refimpl {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// The type of the arithmetic on a format: float32, or float64 for float64.
template <class T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <class T>
using arithmetic_t = typename Arithmetic<T>::type;

REFIMPL_FN float widen(float x) { return x; }
REFIMPL_FN double widen(double x) { return x; }
REFIMPL_FN float widen(bf16 x) { return float_of(int32_t(uint32_t(x.bits) << 16)); }

REFIMPL_FN float widen(f16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  // 2^112 changes the exponent bias from 15 to 127, subnormals included; infinities and NaNs keep an all-ones
  // exponent.
  const uint32_t finite = uint32_t(bits_of(float_of(int32_t(magnitude)) * 0x1p112f));
  const uint32_t special = magnitude | 0x7f800000u;
  return float_of(int32_t(sign | (int32_t(magnitude) >= 0x0f800000 ? special : finite)));
#endif
}

// Rounds to nearest, ties to even; overflow becomes infinite, NaN stays NaN.
template <class T>
REFIMPL_FN T narrow(arithmetic_t<T> x) {
  return x;
}

// The 16 bits of a narrowed float as a 32-bit integer, so that vector code stays in lanes of one width.
REFIMPL_FN uint32_t narrow_bits(float x, bf16) {
  const uint32_t bits = uint32_t(bits_of(x));
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return (x == x ? rounded : 0x7fc00000u) >> 16;
}

REFIMPL_FN uint32_t narrow_bits(float x, f16) {
  const uint32_t bits = uint32_t(bits_of(x));
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14, adding 1/2 leaves the rounded bits of the subnormal in the low bits of the sum.
  const uint32_t subnormal = uint32_t(bits_of(float_of(int32_t(magnitude)) + 0.5f)) - 0x3f000000u;
  const uint32_t special = x == x ? 0x7c00u : 0x7e00u;
  const uint32_t finite = int32_t(magnitude) < 0x38800000 ? subnormal : normal;
  return (int32_t(magnitude) >= 0x47800000 ? special : finite) | ((bits >> 16) & 0x8000u);
}

template <>
REFIMPL_FN bf16 narrow<bf16>(float x) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  return {uint16_t(narrow_bits(x, bf16{}))};
#endif
}

template <>
REFIMPL_FN f16 narrow<f16>(float x) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(x))};
#else
  return {uint16_t(narrow_bits(x, f16{}))};
#endif
}

}  // namespace refimpl
