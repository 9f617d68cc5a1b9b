// What every op's bindings share on the CPU: memory of large results, and work items over torch's threads.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <torch/version.h>
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 10
#include <torch/csrc/stable/c/shim.h>
#define REFIMPL_TORCH_THREADS
#endif

#include <algorithm>

#include "blocks.h"
#include "inputs.h"

namespace refimpl::bind {

struct NoGuard {
  explicit NoGuard(at::Device) {}
};

struct CpuBackend {
  using Guard = NoGuard;

  static Tensor empty(at::IntArrayRef sizes, at::TensorOptions options, at::MemoryFormat order) {
    const size_t bytes = size_t(c10::multiply_integers(sizes)) * options.dtype().itemsize();
    if (bytes < Blocks::SMALLEST) return at::empty(sizes, options, order);
    return Tensor(at::detail::empty_generic(sizes, Blocks::instance(),
                                            c10::DispatchKeySet(c10::DispatchKey::CPU),
                                            c10::typeMetaToScalarType(options.dtype()), order));
  }

  // Elements per thread from which waking another thread pays off (a few microseconds of work).
  static constexpr int64_t STREAMED = 131072, DRAWN = 8192;

  template <class Problem>
  static void parallel(const Problem& p, int64_t items, int64_t elements, int64_t per_thread,
                       void (*kernel)(const Problem&, int64_t, int64_t)) {
    const int64_t per_item = std::max<int64_t>(1, elements / std::max<int64_t>(1, items));
    const int64_t grain = std::max<int64_t>(1, per_thread / per_item);
    const auto range = [&](int64_t begin, int64_t end) { kernel(p, begin, end); };
#ifdef REFIMPL_TORCH_THREADS
    // libtorch's own parallel_for: the one in its headers runs on the thread pool of whatever OpenMP runtime
    // this file is linked to, which torch.set_num_threads does not control.
    const auto call = [](int64_t begin, int64_t end, void* context) {
      (*static_cast<decltype(range)*>(context))(begin, end);
    };
    TORCH_CHECK(torch_parallel_for(0, items, grain, call,
                                   const_cast<void*>(static_cast<const void*>(&range))) == AOTI_TORCH_SUCCESS,
                "parallel_for failed");
#else
    range(0, items);  // torch 2.9 has no such entry: one thread
#endif
  }
};

}  // namespace refimpl::bind
