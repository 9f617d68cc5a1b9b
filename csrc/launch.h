// CUDA launchers, which take a problem over raw device pointers and a stream. No torch.
//
// Each kernel is one launch, followed by a second, small one if partial results have to be reduced, in a
// fixed order. Nothing synchronises with the host, so all of them can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include "adamw_ema.h"
#include "problem.h"

namespace refimpl::cuda {

cudaError_t noise(const NoiseProblem& p, cudaStream_t stream);

int64_t loss_partials(const LossProblem& p);  // float32 values of scratch that `loss` needs
cudaError_t loss(const LossProblem& p, cudaStream_t stream);

int64_t moments_partials(const MomentsProblem& p);  // Moments of scratch that `moments` needs
cudaError_t moments(const MomentsProblem& p, cudaStream_t stream);

// A launch takes dozens of tensors: an SDXL UNet's 1,680 need a few dozen launches.
cudaError_t adamw_ema(const AdamWProblem& p, cudaStream_t stream);
cudaError_t geglu(const GegluProblem& p, cudaStream_t stream);

int64_t group_norm_partials(const GroupNormProblem& p);  // float64 values of scratch
cudaError_t group_norm_silu(const GroupNormProblem& p, cudaStream_t stream);

int64_t layer_norm_partials(const LayerNormProblem& p);  // float64 values of scratch
cudaError_t layer_norm(const LayerNormProblem& p, cudaStream_t stream);

}  // namespace refimpl::cuda
