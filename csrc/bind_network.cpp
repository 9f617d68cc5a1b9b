// Schemas of the ops in the network's blocks, and their registration for the CPU and autograd.
//
// Autocast: no op has an autocast rule; each computes in the format of its tensors, widened to float32.
#include "bind_cpu.h"
#include "bind_geglu.h"
#include "cpu.h"

namespace refimpl::bind {

struct NetworkCpu : CpuBackend {
  // Results from which waking another thread pays off: each takes some tens of operations.
  static constexpr int64_t GATED = 16384;

  static void geglu(const GegluProblem& p) {
    parallel(p, cpu::geglu_items(p), p.rows * p.width, GATED, &cpu::geglu);
  }
};

TORCH_LIBRARY_FRAGMENT(refimpl, m) {
  m.set_python_module("refimpl.ops.kernel");
  m.def("geglu(Tensor packed) -> Tensor");
  m.def("geglu_backward(Tensor grad, Tensor packed) -> Tensor");
}

TORCH_LIBRARY_IMPL(refimpl, CPU, m) { register_geglu<NetworkCpu>(m); }
TORCH_LIBRARY_IMPL(refimpl, Autograd, m) { register_geglu_autograd(m); }

}  // namespace refimpl::bind
