// Every scalar formula of the kernels on latents and weights and its derivative, once, for host and device (N
// §2.1, §2.4, App. B; S §2.5; Loshchilov & Hutter 2019). Those of the network's blocks are in
// network_formulas.h.
//
// Each product that is added to something is an explicit fused multiply-add, and the build turns off the
// compilers' own contraction, so that every processor rounds identically: the normals of a key have the same
// bits on AVX2, AVX-512, aarch64 and CUDA.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define REFIMPL_FN __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define REFIMPL_FN inline __attribute__((always_inline))
#else
#define REFIMPL_FN inline
#endif

namespace refimpl {

// a·b + c, rounded once
REFIMPL_FN float fused(float a, float b, float c) { return fmaf(a, b, c); }
REFIMPL_FN double fused(double a, double b, double c) { return fma(a, b, c); }

// ---- v-prediction (N §2.1) ----

// x_t = alpha·x0 + sigma·eps; at alpha = 0, sigma = 1 it is eps, bit for bit
template <class T>
REFIMPL_FN T noised(T alpha, T x0, T sigma, T eps) {
  return fused(alpha, x0, sigma * eps);
}

// v = alpha·eps − sigma·x0; at alpha = 0, sigma = 1 it is −x0, bit for bit
template <class T>
REFIMPL_FN T velocity(T alpha, T x0, T sigma, T eps) {
  return fused(alpha, eps, -(sigma * x0));
}

// One element's contribution to the loss: (prediction − v)²
template <class T>
REFIMPL_FN T loss_term(T prediction, T v) {
  const T residual = prediction - v;
  return residual * residual;
}

// ∂ loss_term / ∂ prediction = 2·(prediction − v)
template <class T>
REFIMPL_FN T loss_term_derivative(T prediction, T v) {
  return T(2) * (prediction - v);
}

// loss[b] = weight·Σ loss_term / n
REFIMPL_FN double weighted_mean(double weight, double sum, double n) { return weight * (sum / n); }

// The factor of loss_term_derivative for the incoming gradient of loss[b]; in float64, as the product of a
// small weight and a large loss scale must not pass through float32's subnormals.
REFIMPL_FN double gradient_scale(double incoming, double weight, double n) { return incoming * weight / n; }

// ---- Philox4x32-10 (Salmon et al. 2011, §3.3) ----

struct Words {
  uint32_t w[4];
};

template <class Lane>
struct Product {
  Lane low, high;
};

// The halves of the 64-bit product of two 32-bit words.
template <class Lane>
REFIMPL_FN Product<Lane> wide_product(uint32_t a, Lane b) {
#if defined(__CUDA_ARCH__)
  Product<Lane> p;  // by name, as nvcc adds 0 to every upper half that is taken by a shift
  asm("{ .reg .u64 p; mul.wide.u32 p, %2, %3; mov.b64 {%0, %1}, p; }"
      : "=r"(p.low), "=r"(p.high)
      : "r"(a), "r"(b));
  return p;
#else
  const uint64_t p = uint64_t(a) * (b & 0xffffffffu);
  return {Lane(p), Lane(p >> 32)};
#endif
}

// Lane holds a 32-bit word: uint32_t, or uint64_t whose upper half is ignored. Vector units multiply the
// latter fastest, as their products of 32-bit words fill 64-bit lanes.
template <class Lane>
REFIMPL_FN Words philox4x32(Lane c0, Lane c1, Lane c2, Lane c3, uint32_t k0, uint32_t k1) {
#if defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 10
#else
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const Product<Lane> p0 = wide_product(0xD2511F53u, c0), p1 = wide_product(0xCD9E8D57u, c2);
    c0 = p1.high ^ c1 ^ k0;
    c1 = p1.low;
    c2 = p0.high ^ c3 ^ k1;
    c3 = p0.low;
    k0 += 0x9E3779B9u;  // the golden ratio
    k1 += 0xBB67AE85u;  // √3 − 1
  }
  return {{uint32_t(c0), uint32_t(c1), uint32_t(c2), uint32_t(c3)}};
}

// The third counter word: what a key's words are used for (the streams of diffusion/philox.py).
constexpr uint32_t NOISE_STREAM = 0;
constexpr uint32_t OFFSET_STREAM = 1;

// Block j of a key's stream: lanes 4j … 4j + 3.
REFIMPL_FN Words keyed_block(uint64_t j, uint32_t stream, uint32_t k0, uint32_t k1) {
  return philox4x32<uint32_t>(uint32_t(j), uint32_t(j >> 32), stream, 0, k0, k1);
}

// ---- Box–Muller in float32, within 4 ulp of the radius of the float64 definition ----

REFIMPL_FN int32_t bits_of(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

REFIMPL_FN float float_of(int32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// ln(1 + s) for s in [√½ − 1, √2 − 1]; s − s²/2 + s³·P(s), P minimax of the relative error (1.5e-9)
REFIMPL_FN float log1p_near_zero(float s) {
  float p = 0.0693729296f;
  p = fused(p, s, -0.118467353f);
  p = fused(p, s, 0.118887991f);
  p = fused(p, s, -0.123774871f);
  p = fused(p, s, 0.142171174f);
  p = fused(p, s, -0.166694835f);
  p = fused(p, s, 0.200021878f);
  p = fused(p, s, -0.249999836f);
  p = fused(p, s, 0.333333135f);
  const float s2 = s * s;
  return s + fused(s2 * s, p, -0.5f * s2);
}

// ln u for u = (w + 1/2) / 2³². Near u = 1 the logarithm is as small as 1 − u, whose digits a float32 u has
// lost; so the half above 1/2 starts from 1 − u = (2³² − 1 − w + 1/2) / 2³², which is exact in integers.
REFIMPL_FN float log_uniform(uint32_t w) {
  const bool above_half = int32_t(w) < 0;
  const uint32_t nearer_end = above_half ? ~w : w;
  const float f = (float(int32_t(nearer_end)) + 0.5f) * 0x1p-32f;  // u, or 1 − u: in (0, 1/2]

  const int32_t k_below = (bits_of(f) - 0x3f3504f3) >> 23;  // f = 2ᵏ·(1 + s), 1 + s ≥ √½ = 0x3f3504f3
  const float s_below = float_of(bits_of(f) - int32_t(uint32_t(k_below) << 23)) - 1.0f;

  const bool near_one = f < 0.29289323f;                        // 1 − f ≥ √½
  const float s_above = near_one ? -f : fused(-2.0f, f, 1.0f);  // 1 − f = 1 + s, or (1 + s) / 2; both exact
  const int32_t k_above = near_one ? 0 : -1;

  const float s = above_half ? s_above : s_below;
  const float k = float(above_half ? k_above : k_below);
  return fused(k, 0.693147182f, log1p_near_zero(s));  // k·ln 2 + ln(1 + s)
}

REFIMPL_FN float radius(uint32_t w) { return sqrtf(-2.0f * log_uniform(w)); }

struct Direction {
  float cos, sin;
};

// cos φ and sin φ for φ = 2π·w / 2³², reduced exactly in integers to a quarter turn centred on an axis.
REFIMPL_FN Direction direction(uint32_t w) {
  const uint32_t quarter = (w + 0x20000000u) >> 30;
  const float x = float(int32_t(w - (quarter << 30))) * 0x1p-30f;  // quarter turns, in [−1/2, 1/2]
  const float y = x * x;
  float s = -0.00460165832f;  // sin(πx/2) / x, minimax of the relative error (3e-9)
  s = fused(s, y, 0.079680033f);
  s = fused(s, y, -0.64596343f);
  s = fused(s, y, 1.57079637f);
  s *= x;
  float c = 0.000903629872f;  // cos(πx/2), minimax (9e-11)
  c = fused(c, y, -0.0208601672f);
  c = fused(c, y, 0.253669232f);
  c = fused(c, y, -1.23370051f);
  c = fused(c, y, 1.0f);
  const bool swap = (quarter & 1u) != 0;
  const int32_t cos_sign = int32_t(((quarter + 1u) & 2u) << 30);
  const int32_t sin_sign = int32_t((quarter & 2u) << 30);
  return {float_of(bits_of(swap ? s : c) ^ cos_sign), float_of(bits_of(swap ? c : s) ^ sin_sign)};
}

// Four normals from one Philox block: words (w0, w1) give lanes 0 and 1, words (w2, w3) lanes 2 and 3.
struct Normals {
  float z[4];
};

REFIMPL_FN Normals box_muller(const Words& words) {
  const float r0 = radius(words.w[0]);
  const float r1 = radius(words.w[2]);
  const Direction d0 = direction(words.w[1]);
  const Direction d1 = direction(words.w[3]);
  return {{r0 * d0.cos, r0 * d0.sin, r1 * d1.cos, r1 * d1.sin}};
}

// Offset noise (S §2.5): eps + s·z, where z is one normal per (sample, channel).
REFIMPL_FN float offset_normal(uint32_t channel, uint32_t k0, uint32_t k1) {
  const Normals normals = box_muller(keyed_block(channel / 4, OFFSET_STREAM, k0, k1));
  const uint32_t lane = channel % 4;
  return lane == 0 ? normals.z[0] : lane == 1 ? normals.z[1] : lane == 2 ? normals.z[2] : normals.z[3];
}

REFIMPL_FN float with_offset(float eps, float s, float z) { return fused(s, z, eps); }

// ---- Welford, merged by Chan's rule (N App. B) ----

struct Moments {
  double count, mean, m2;
};

REFIMPL_FN Moments welford_merge(const Moments& a, const Moments& b) {
  const double count = a.count + b.count;
  if (b.count == 0) return a;
  if (a.count == 0) return b;
  const double delta = b.mean - a.mean;
  const double share = b.count / count;
  return {count, fused(delta, share, a.mean), fused(delta * delta, a.count * share, a.m2 + b.m2)};
}

// ---- AdamW (Loshchilov & Hutter 2019, alg. 2) and the moving average of the weights (S §2.5) ----
//
// The order of roundings is that of torch's fused AdamW and lerp where torch uses fused multiply-adds.

REFIMPL_FN float root(float x) { return sqrtf(x); }
REFIMPL_FN double root(double x) { return sqrt(x); }

// from + share·(to − from); exactly `to` at share 1. m ← toward(m, g, 1 − beta1), ema ← toward(ema, theta, 1
// − decay).
template <class T>
REFIMPL_FN T toward(T from, T to, T share) {
  const T way = to - from;
  return share < T(0.5) ? fused(share, way, from) : fused(share - T(1), way, to);
}

// v ← beta2·v + rest·g², rest = 1 − beta2
template <class T>
REFIMPL_FN T second_moment(T v, T g, T beta2, T rest) {
  return fused(rest * g, g, beta2 * v);
}

// theta ← kept·theta − rate·m / (√v / correction + epsilon), where kept = 1 − learning rate·weight decay,
// rate = learning rate / (1 − beta1ᵗ) and correction = √(1 − beta2ᵗ)
template <class T>
REFIMPL_FN T adamw_weight(T theta, T m, T v, T kept, T rate, T correction, T epsilon) {
  return kept * theta - rate * m / (root(v) / correction + epsilon);
}

}  // namespace refimpl
