// Registration of the ops for CUDA: device guard, current stream, launch.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "bind.h"
#include "bind_adamw_ema.h"
#include "bind_geglu.h"
#include "bind_group_norm.h"
#include "bind_layer_norm.h"
#include "launch.h"

namespace refimpl::bind {

struct Cuda {
  // One tensor on a GPU is enough to be called, so the one that counts may lie elsewhere.
  struct Guard {
    const c10::cuda::CUDAGuard guard;
    explicit Guard(at::Device device) : guard(on_gpu(device)) {}

    static at::Device on_gpu(at::Device device) {
      TORCH_CHECK_VALUE(device.is_cuda(), "the first tensor is on ", device,
                        " and another on a GPU: move them to one device");
      return device;
    }
  };
  static constexpr at::ScalarType loss_partial_dtype = at::kFloat;

  static Tensor empty(at::IntArrayRef sizes, at::TensorOptions options, at::MemoryFormat order) {
    return at::empty(sizes, options, order);
  }

  static void noise(const NoiseProblem& p) {
    C10_CUDA_CHECK(cuda::noise(p, c10::cuda::getCurrentCUDAStream()));
  }

  static int64_t loss_partials(const LossProblem& p) { return cuda::loss_partials(p); }

  static void loss(const LossProblem& p) { C10_CUDA_CHECK(cuda::loss(p, c10::cuda::getCurrentCUDAStream())); }

  static int64_t moments_partials(const MomentsProblem& p) { return cuda::moments_partials(p); }

  static void moments(const MomentsProblem& p) {
    C10_CUDA_CHECK(cuda::moments(p, c10::cuda::getCurrentCUDAStream()));
  }

  static void adamw_ema(const AdamWProblem& p) {
    C10_CUDA_CHECK(cuda::adamw_ema(p, c10::cuda::getCurrentCUDAStream()));
  }

  static void geglu(const GegluProblem& p) {
    C10_CUDA_CHECK(cuda::geglu(p, c10::cuda::getCurrentCUDAStream()));
  }

  static int64_t group_norm_partials(const GroupNormProblem& p) { return cuda::group_norm_partials(p); }

  static void group_norm_silu(const GroupNormProblem& p) {
    C10_CUDA_CHECK(cuda::group_norm_silu(p, c10::cuda::getCurrentCUDAStream()));
  }

  static int64_t layer_norm_partials(const LayerNormProblem& p) { return cuda::layer_norm_partials(p); }

  static void layer_norm(const LayerNormProblem& p) {
    C10_CUDA_CHECK(cuda::layer_norm(p, c10::cuda::getCurrentCUDAStream()));
  }
};

TORCH_LIBRARY_IMPL(refimpl, CUDA, m) {
  register_ops<Cuda>(m);
  m.impl("adamw_ema_", &adamw_ema_<Cuda>);
  register_geglu<Cuda>(m);
  register_group_norm<Cuda>(m);
  register_layer_norm<Cuda>(m);
}

}  // namespace refimpl::bind
