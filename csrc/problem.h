// A kernel's arguments: raw pointers and int64 sizes, the same for the CPU and CUDA.
#pragma once

#include "formats.h"

namespace refimpl {

enum class DType { f32, bf16, f16, f64 };

// A dense [B, C, H, W] tensor; all tensors of one problem have the same memory format.
struct Layout {
  int64_t batch, channels, area;  // area = H·W
  bool channels_last;             // a sample lies in memory as [H, W, C] instead of [C, H, W]

  REFIMPL_FN int64_t sample() const { return channels * area; }
};

// [B] float32 or float64 scalars, one per sample; null if a kernel does not use them.
struct PerSample {
  const void* data;
  int64_t stride;
  bool is_double;

  template <class T>
  REFIMPL_FN T at(int64_t b) const {
    return is_double ? T(static_cast<const double*>(data)[b * stride])
                     : T(static_cast<const float*>(data)[b * stride]);
  }
};

// The noise of a problem: stored (eps), or drawn from each sample's key wherever it is needed.
struct Noise {
  const void* eps;     // [B, C, H, W], or null when the noise is keyed
  const int64_t* key;  // [B, 2] uint32 values
  float offset;        // factor of the offset noise

  REFIMPL_FN bool keyed() const { return eps == nullptr; }
  REFIMPL_FN uint32_t word(int64_t b, int i) const { return uint32_t(key[2 * b + i]); }
};

// out = alpha·x0 + sigma·noise; without x0, out (float32, contiguous) is the keyed noise itself.
struct NoiseProblem {
  Layout layout;
  const void* x0;
  Noise noise;
  PerSample alpha, sigma;
  void* out;
  DType dtype;  // of x0, eps and out
};

// loss[b] = weight·mean((prediction − v)²), and grad = incoming[b]·∂loss[b]/∂prediction.
struct LossProblem {
  Layout layout;
  const void* prediction;
  const void* x0;
  Noise noise;
  PerSample alpha, sigma, weight;
  PerSample incoming;    // gradient of the caller's scalar by loss[b]; null: `expected` for every sample
  double expected;       // the incoming gradient that grad was computed for already, or is to be computed for
  bool only_unexpected;  // leave the samples of grad whose incoming gradient is the expected one
  void* partial;         // scratch, loss_partials(...) values of the arithmetic's type (CPU: double)
  void* loss;            // [B] float32 (float64 for float64 tensors), or null: no loss wanted
  void* grad;            // in prediction's format and order, or null: no gradient wanted
  DType prediction_dtype;
  DType latent_dtype;  // of x0 and eps: prediction's, or float32
};

// Per channel: count, mean and m2 = Σ (x − mean)², all float64.
struct MomentsProblem {
  Layout layout;
  const void* x;
  Moments* partial;           // scratch, moments_partials(...) values
  double *count, *mean, *m2;  // [1], [C], [C]
  DType dtype;
};

// out = a·gelu(b) [rows, width] for packed = (a, b) [rows, 2·width]; given incoming [rows, width], the
// gradient by packed goes to out [rows, 2·width] instead. All contiguous and of one format.
struct GegluProblem {
  int64_t rows, width;
  const void* packed;
  const void* incoming;  // null: the value is wanted
  void* out;
  DType dtype;
};

// y = silu(group_norm(x)·weight + bias), with the mean and 1 / deviation of each group; or, given incoming,
// the gradients of it. x, y, incoming and dx have one layout and format; the others are float32, or float64
// for float64 tensors.
struct GroupNormProblem {
  Layout layout;
  int64_t groups;
  double eps;
  const void* x;
  const void *weight, *bias;  // [C]
  void *mean, *deviation;     // [B, groups], the second inverted: written going forward, read going back
  const void* incoming;       // null: the value is wanted
  void* out;                  // y, or dx
  void *by_weight, *by_bias;  // [C], going back
  void* partial;              // scratch, group_norm_partials(...) values
  DType dtype;

  REFIMPL_FN int64_t group_size() const { return layout.channels / groups; }
};

// y = layer_norm(x)·weight + bias, with the mean and 1 / deviation of each row; or, given incoming, the
// gradients of it. x, y, incoming and dx are contiguous [rows, width] and of one format; the others are
// float32, or float64 for float64 tensors.
struct LayerNormProblem {
  int64_t rows, width;
  double eps;
  const void* x;
  const void *weight, *bias;  // [width]
  void *mean, *deviation;     // [rows], the second inverted: written going forward, read going back
  const void* incoming;       // null: the value is wanted
  void* out;                  // y, or dx
  void *by_weight, *by_bias;  // [width], going back
  void* partial;              // scratch, layer_norm_partials(...) values
  DType dtype;
};

}  // namespace refimpl
