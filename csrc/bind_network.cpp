// Schemas of the ops in the network's blocks, and their registration for the CPU and autograd.
//
// Autocast: no op has an autocast rule; each computes in the format of its tensors, widened to float32.
#include "bind_cpu.h"
#include "bind_geglu.h"
#include "bind_group_norm.h"
#include "bind_layer_norm.h"
#include "cpu.h"

namespace refimpl::bind {

struct NetworkCpu : CpuBackend {
  // Results from which waking another thread pays off: each takes some tens of operations.
  static constexpr int64_t GATED = 16384;

  static void geglu(const GegluProblem& p) {
    parallel(p, cpu::geglu_items(p), p.rows * p.width, GATED, &cpu::geglu);
  }

  static int64_t group_norm_partials(const GroupNormProblem& p) { return cpu::group_norm_partials(p); }

  static void group_norm_silu(const GroupNormProblem& p) {
    parallel(p, cpu::group_norm_items(p), p.layout.batch * p.layout.sample(), GATED, &cpu::group_norm_silu);
    if (p.incoming) cpu::finish_group_norm(p);
  }

  static int64_t layer_norm_partials(const LayerNormProblem& p) { return cpu::layer_norm_partials(p); }

  static void layer_norm(const LayerNormProblem& p) {
    parallel(p, cpu::layer_norm_items(p), p.rows * p.width, GATED, &cpu::layer_norm);
    if (p.incoming) cpu::finish_layer_norm(p);
  }
};

TORCH_LIBRARY_FRAGMENT(refimpl, m) {
  m.set_python_module("refimpl.ops.network_kernel");
  m.def("geglu(Tensor packed) -> Tensor");
  m.def("geglu_backward(Tensor grad, Tensor packed) -> Tensor");
  m.def("group_norm_silu(Tensor x, Tensor weight, Tensor bias, int groups, float eps) -> Tensor");
  // The steps of its derivative; `deviation` is 1 / the standard deviation of each group.
  m.def(
      "group_norm_silu_forward(Tensor x, Tensor weight, Tensor bias, int groups, float eps) -> "
      "(Tensor y, Tensor mean, Tensor deviation)");
  m.def(
      "group_norm_silu_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor mean, "
      "Tensor deviation, int groups, float eps) -> (Tensor, Tensor, Tensor)");
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor");
  // The steps of its derivative; `deviation` is 1 / the standard deviation of each row.
  m.def(
      "layer_norm_forward(Tensor x, Tensor weight, Tensor bias, float eps) -> "
      "(Tensor y, Tensor mean, Tensor deviation)");
  m.def(
      "layer_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor deviation, "
      "float eps) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(refimpl, CPU, m) {
  register_geglu<NetworkCpu>(m);
  register_group_norm<NetworkCpu>(m);
  register_layer_norm<NetworkCpu>(m);
}
TORCH_LIBRARY_IMPL(refimpl, Autograd, m) {
  register_geglu_autograd(m);
  register_group_norm_autograd(m);
  register_layer_norm_autograd(m);
}

}  // namespace refimpl::bind
