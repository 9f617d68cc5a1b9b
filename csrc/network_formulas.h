// Every scalar formula of the kernels in the network's blocks and its derivative, once, for host and device
// (S §2.1), in fused multiply-adds like those of formulas.h: the same bits on every processor.
#pragma once

#include "formulas.h"

namespace refimpl {

// ---- GEGLU: a · GELU(b) with the exact GELU, b·Φ(b) (Shazeer 2020, §2; Hendrycks & Gimpel 2016, §2) ----

// The standard normal distribution at b: Φ(b) and φ(b).
template <class T>
struct Normal {
  T cdf, density;
};

// e^(−s/2) for 0 ≤ s < 174: the rounding of s apart, within 2 ulp up to s = 4 and 64 ulp at the end.
REFIMPL_FN float decay(float s) {
  const float shifted = fused(s, -0.72134752f, 12582912.0f);  // 3·2²²: the low bits hold an integer k
  const float k = shifted - 12582912.0f;                      // s/2 = w/2 − k·ln 2
  float w = fused(k, 1.38671875f, s);  // 2·ln 2 in two parts, the first with few digits
  w = fused(k, -4.24388880e-4f, w);
  float p = 2.1619871e-05f;  // e^(−w/2), minimax (2e-9)
  p = fused(p, w, -0.00026171617f);
  p = fused(p, w, 0.0026042645f);
  p = fused(p, w, -0.020833023f);
  p = fused(p, w, 0.12499998f);
  p = fused(p, w, -0.5f);
  p = fused(p, w, 1.0f);
  return float_of(int32_t(uint32_t(bits_of(p)) + (uint32_t(bits_of(shifted)) << 23)));  // p·2ᵏ
}

// 1 / y within 0.51 ulp for y from 1 to 6, in fused multiply-adds alone: a division costs CUDA a branch, and
// its approximate reciprocal has other bits on every architecture.
REFIMPL_FN float reciprocal(float y) {
  float r = float_of(0x7ef311c7 - bits_of(y));  // within 12 %; two cubic steps leave 5e-9
  float rest = fused(-y, r, 1.0f);
  r = fused(r, fused(rest, rest, rest), r);
  rest = fused(-y, r, 1.0f);
  return fused(r, fused(rest, rest, rest), r);
}

// Φ(−x) = e^(−x²/2)·Q(x) for x = |b|, so that the lower tail keeps its relative accuracy: Φ is within 3 ulp
// for b ≥ 0, 9 ulp down to −3 and 68 ulp down to −13. Q = t·P(u), t = 1 / (1 + 0.35 x), u = 1 − t, P minimax
// (3e-8).
REFIMPL_FN Normal<float> standard_normal(float b) {
  constexpr float END = 13.2f;  // e^(−x²/2) is subnormal from here on, and taken as 0
  const float magnitude = fabsf(b);
  const float x = magnitude < END ? magnitude : END;
  const float scaled = 0.35f * x;
  const float t = reciprocal(1.0f + scaled);
  const float u = scaled * t;
  float q = -0.029108977f;
  q = fused(q, u, 0.08908342f);
  q = fused(q, u, -0.0638601f);
  q = fused(q, u, -0.016210642f);
  q = fused(q, u, -0.06412728f);
  q = fused(q, u, 0.1026315f);
  q = fused(q, u, 0.2610458f);
  q = fused(q, u, -0.639832f);
  q = fused(q, u, 0.5f);
  const float e = x < END ? decay(x * x) : 0.0f;
  const float tail = e * (q * t);
  return {b < 0 ? tail : 1.0f - tail, e * 0.398942280f};
}

REFIMPL_FN Normal<double> standard_normal(double b) {
  return {0.5 * erfc(b * -0.70710678118654752), exp(-0.5 * b * b) * 0.39894228040143268};
}

// gelu(b) = b·Φ(b)
template <class T>
REFIMPL_FN T gelu(T b, const Normal<T>& at_b) {
  return b * at_b.cdf;
}

// gelu′(b) = Φ(b) + b·φ(b)
template <class T>
REFIMPL_FN T gelu_derivative(T b, const Normal<T>& at_b) {
  return fused(b, at_b.density, at_b.cdf);
}

// a·gelu(b)
template <class T>
REFIMPL_FN T gated(T a, T b) {
  return a * gelu(b, standard_normal(b));
}

// The gradients by a and b for the incoming gradient g.
template <class T>
struct GatedSlopes {
  T by_a, by_b;
};

template <class T>
REFIMPL_FN GatedSlopes<T> gated_slopes(T a, T b, T g) {
  const Normal<T> at_b = standard_normal(b);
  return {g * gelu(b, at_b), g * a * gelu_derivative(b, at_b)};
}

// ---- Group normalisation and SiLU, layer normalisation (Wu & He 2018, eq. 1; Ba et al. 2016, eq. 4; S §2.1)
// ----

// σ(z) = 1 / (1 + e^(−z)), within 3 ulp for z > −87 and 0 below
REFIMPL_FN float sigmoid(float z) {
  constexpr float END = 87.0f;  // e^(−|z|) is subnormal soon after, and taken as 0
  const float magnitude = fabsf(z);
  const float e = magnitude < END ? decay(2.0f * magnitude) : 0.0f;
  const float t = reciprocal(1.0f + e);
  return z < 0 ? e * t : t;
}

REFIMPL_FN double sigmoid(double z) { return 1 / (1 + exp(-z)); }

// silu(z) = z·σ(z)
template <class T>
REFIMPL_FN T silu(T z) {
  return z * sigmoid(z);
}

// silu′(z) = σ·(1 + z·(1 − σ))
template <class T>
REFIMPL_FN T silu_derivative(T z) {
  const T s = sigmoid(z);
  return fused(s, z * (T(1) - s), s);
}

// 1 / √(variance + eps) of a group, or of a row, from Σ (x − mean)² over its n elements
template <class T>
REFIMPL_FN T reciprocal_deviation(T m2, T n, T eps) {
  return 1 / root(m2 / n + eps);
}

// One channel of a sample, or of a row: what its elements need of their group and of the affine map.
template <class T>
struct ChannelNorm {
  T mean, factor, bias;  // factor = weight / deviation
};

// z = (x − mean) / deviation·weight + bias
template <class T>
REFIMPL_FN T normalised(T x, const ChannelNorm<T>& norm) {
  return fused(x - norm.mean, norm.factor, norm.bias);
}

// ∂/∂x of a group, or of a row: factor·dz − (share + slope·(x − mean)), where share and slope are its means
// of weight·dz and of weight·dz·(x − mean)/deviation², both divided by the deviation.
template <class T>
REFIMPL_FN T norm_slope(T x, T dz, const ChannelNorm<T>& norm, T share, T slope) {
  return fused(dz, norm.factor, -fused(x - norm.mean, slope, share));
}

}  // namespace refimpl
