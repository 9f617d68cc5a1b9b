// Checks of the tensors passed from Python, and their conversion to a problem's pointers and sizes.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "problem.h"

namespace refimpl::bind {

using at::Tensor;

inline DType dtype_of(const char* name, const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return DType::f32;
    case at::kBFloat16: return DType::bf16;
    case at::kHalf: return DType::f16;
    case at::kDouble:
      TORCH_CHECK_VALUE(!x.is_cuda(), name,
                        " is float64: the CUDA kernels take float32, bfloat16 and float16; ",
                        "choose the backend 'reference' for float64 on a GPU");
      return DType::f64;
    default: break;
  }
  TORCH_CHECK_TYPE(false, name, " must be float32, bfloat16, float16 or float64, got ", x.scalar_type());
}

inline void check_image(const char* name, const Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 4, name, " must have shape [B, C, H, W], got ", x.sizes());
}

inline void check_like(const char* name, const Tensor& x, const char* other_name, const Tensor& other) {
  TORCH_CHECK_VALUE(x.sizes() == other.sizes(), name, " has shape ", x.sizes(), " and ", other_name, " ",
                    other.sizes(), ": they must agree");
  TORCH_CHECK_VALUE(x.device() == other.device(), name, " is on ", x.device(), " and ", other_name, " on ",
                    other.device(), ": move them to one device");
}

// x itself if no conversion is needed: `to` goes through the dispatcher even then.
inline Tensor converted(const Tensor& x, at::ScalarType dtype, at::MemoryFormat order) {
  return (x.scalar_type() == dtype ? x : x.to(dtype)).contiguous(order);
}

inline at::MemoryFormat order_of(const Tensor& x) {
  const bool last = !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

inline Layout layout_of(const Tensor& x, at::MemoryFormat order) {
  return {x.size(0), x.size(1), x.size(2) * x.size(3), order == at::MemoryFormat::ChannelsLast};
}

// [B] scalars in float32 or float64 on x0's device; `kept` owns them, or their converted copy.
inline PerSample per_sample(const char* name, const Tensor& scalars, const Tensor& x0, Tensor& kept) {
  TORCH_CHECK_VALUE(scalars.dim() == 1 && scalars.size(0) == x0.size(0), name, " has shape ", scalars.sizes(),
                    " and x0 ", x0.sizes(), ": give one per sample");
  const bool is_double = scalars.scalar_type() == at::kDouble;
  const at::ScalarType dtype = is_double ? at::kDouble : at::kFloat;
  const bool fits = scalars.scalar_type() == dtype && scalars.device() == x0.device();
  kept = fits ? scalars : scalars.to(x0.device(), dtype);
  return {kept.const_data_ptr(), kept.stride(0), is_double};
}

inline Noise keyed_noise(const Tensor& key, const Tensor& x0, double offset, Tensor& kept) {
  TORCH_CHECK_TYPE(key.scalar_type() == at::kLong, "key must be int64 holding uint32, got ",
                   key.scalar_type());
  TORCH_CHECK_VALUE(key.dim() == 2 && key.size(1) == 2 && key.size(0) == x0.size(0), "key has shape ",
                    key.sizes(), " and x0 ", x0.sizes(), ": give one key [2] per sample");
  TORCH_CHECK_VALUE(std::isfinite(offset), "offset must be finite, got ", offset,
                    ": N and S use 0.05, and 0 switches it off");
  kept = (key.device() == x0.device() ? key : key.to(x0.device())).contiguous();
  return {nullptr, kept.const_data_ptr<int64_t>(), float(offset)};
}

// The dtype that represents both without rounding: float32, unless they agree or one is float64.
inline at::ScalarType common_dtype(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == b.scalar_type()) return a.scalar_type();
  const bool wide = a.scalar_type() == at::kDouble || b.scalar_type() == at::kDouble;
  return wide ? at::kDouble : at::kFloat;
}

}  // namespace refimpl::bind
