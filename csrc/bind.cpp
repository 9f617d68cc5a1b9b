// Schemas of the ops on latents, their registration for the CPU and autograd, and the Python module.
//
// Autocast: no op has an autocast rule. Each runs on the tensors it is given, computes in float32 (float64
// for float64), and takes a bfloat16 or float16 prediction together with float32 latents, as autocast leaves
// them.
#include "bind.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include "autograd.h"
#include "bind_adamw_ema.h"
#include "bind_cpu.h"
#include "cpu.h"

namespace refimpl::bind {

struct Cpu : CpuBackend {
  static constexpr at::ScalarType loss_partial_dtype = at::kDouble;

  static void noise(const NoiseProblem& p) {
    parallel(p, cpu::noise_items(p), p.layout.batch * p.layout.sample(), p.noise.keyed() ? DRAWN : STREAMED,
             &cpu::noise);
  }

  static int64_t loss_partials(const LossProblem& p) { return cpu::loss_items(p); }

  static void loss(const LossProblem& p) {
    parallel(p, cpu::loss_items(p), p.layout.batch * p.layout.sample(), p.noise.keyed() ? DRAWN : STREAMED,
             &cpu::loss);
    if (p.loss) cpu::finish_loss(p);
  }

  static int64_t moments_partials(const MomentsProblem& p) { return cpu::moments_partials(p); }

  static void moments(const MomentsProblem& p) {
    parallel(p, cpu::moments_items(p), p.layout.batch * p.layout.sample(), STREAMED, &cpu::moments);
    cpu::finish_moments(p);
  }

  static void adamw_ema(const AdamWProblem& p) {
    if (*p.found_inf != 0) return;
    cpu::start_adamw_ema(p);
    int64_t elements = 0;
    for (int64_t k = 0; k < p.tensor_count; ++k) elements += p.tensors[k].count;
    parallel(p, cpu::adamw_ema_items(p), elements, STREAMED, &cpu::adamw_ema);
  }
};

TORCH_LIBRARY(refimpl, m) {
  m.set_python_module("refimpl.ops.kernel");
  m.def("add_noise(Tensor x0, Tensor eps, Tensor alpha, Tensor sigma) -> Tensor");
  m.def("add_keyed_noise(Tensor x0, Tensor key, Tensor alpha, Tensor sigma, float offset=0.0) -> Tensor");
  m.def("keyed_normal(Tensor key, int channels, int height, int width, float offset=0.0) -> Tensor");
  // expected: the incoming gradient of loss[b] that the caller's backward pass will send; 1 / B by default.
  m.def(
      "v_loss(Tensor prediction, Tensor x0, Tensor eps, Tensor alpha, Tensor sigma, Tensor weight, "
      "float? expected=None) -> Tensor");
  m.def(
      "keyed_v_loss(Tensor prediction, Tensor x0, Tensor key, Tensor alpha, Tensor sigma, Tensor weight, "
      "float offset=0.0, float? expected=None) -> Tensor");
  // The steps of the two losses' derivatives; exactly one of eps and key is given.
  m.def(
      "v_loss_forward(Tensor prediction, Tensor x0, Tensor? eps, Tensor? key, Tensor alpha, Tensor sigma, "
      "Tensor weight, float offset, float? expected) -> (Tensor loss, Tensor grad)");
  m.def(
      "v_loss_backward(Tensor prediction, Tensor x0, Tensor? eps, Tensor? key, Tensor alpha, Tensor sigma, "
      "Tensor weight, float offset, Tensor incoming) -> Tensor");
  m.def(
      "v_loss_correct_(Tensor(a!) grad, Tensor prediction, Tensor x0, Tensor? eps, Tensor? key, Tensor "
      "alpha, "
      "Tensor sigma, Tensor weight, float offset, Tensor incoming, float? expected) -> ()");
  m.def("channel_moments(Tensor x) -> (Tensor count, Tensor mean, Tensor m2)");
}

TORCH_LIBRARY_FRAGMENT(refimpl, m) {
  m.set_python_module("refimpl.ops.adamw_ema_kernel");
  m.def(
      "adamw_ema_(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] averages, Tensor(e!)[] steps, Tensor scale, Tensor found_inf, float learning_rate, float "
      "beta1, float beta2, float epsilon, float weight_decay, float decay) -> ()");
}

TORCH_LIBRARY_IMPL(refimpl, CPU, m) {
  register_ops<Cpu>(m);
  m.impl("adamw_ema_", &adamw_ema_<Cpu>);
}
TORCH_LIBRARY_IMPL(refimpl, Autograd, m) { register_autograd(m); }

}  // namespace refimpl::bind

namespace {

namespace py = pybind11;
using namespace refimpl;

const char* isa_name() {
  switch (cpu::isa()) {
    case cpu::Isa::avx512: return "avx512";
    case cpu::Isa::avx2: return "avx2";
    case cpu::Isa::plain: break;
  }
  return "plain";
}

void use_isa(const std::string& name) {
  if (name == "best") return cpu::use_isa(cpu::best_isa());
  for (const cpu::Isa isa : {cpu::Isa::plain, cpu::Isa::avx2, cpu::Isa::avx512}) {
    cpu::use_isa(isa);
    if (isa_name() == name) return;
  }
  cpu::use_isa(cpu::best_isa());
  throw py::value_error("this processor or build has no instruction set '" + name + "'");
}

float normal_of_words(uint32_t even, uint32_t odd, int lane) {
  return box_muller({{even, odd, even, odd}}).z[lane];
}

uint32_t philox_word(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1, int i) {
  return philox4x32<uint32_t>(c0, c1, c2, c3, k0, k1).w[i];
}

template <class T>
T cdf_of(T b) {
  return standard_normal(b).cdf;
}

template <class T>
T density_of(T b) {
  return standard_normal(b).density;
}

template <class T>
T gated_slope_of(T a, T b, T g, int which) {
  const GatedSlopes<T> slopes = gated_slopes(a, b, g);
  return which == 0 ? slopes.by_a : slopes.by_b;
}

template <class T>
void define_formulas(py::module_& m, const std::string& suffix) {
  m.def(("noised" + suffix).c_str(), py::vectorize(&noised<T>));
  m.def(("velocity" + suffix).c_str(), py::vectorize(&velocity<T>));
  m.def(("loss_term" + suffix).c_str(), py::vectorize(&loss_term<T>));
  m.def(("loss_term_derivative" + suffix).c_str(), py::vectorize(&loss_term_derivative<T>));
  m.def(("toward" + suffix).c_str(), py::vectorize(&toward<T>));
  m.def(("second_moment" + suffix).c_str(), py::vectorize(&second_moment<T>));
  m.def(("adamw_weight" + suffix).c_str(), py::vectorize(&adamw_weight<T>));
  m.def(("normal_cdf" + suffix).c_str(), py::vectorize(&cdf_of<T>));
  m.def(("normal_density" + suffix).c_str(), py::vectorize(&density_of<T>));
  m.def(("silu" + suffix).c_str(), py::vectorize(&silu<T>));
  m.def(("silu_derivative" + suffix).c_str(), py::vectorize(&silu_derivative<T>));
  m.def(("gated" + suffix).c_str(), py::vectorize(&gated<T>));
  m.def(("gated_slope" + suffix).c_str(), py::vectorize(&gated_slope_of<T>), "By a (0) or by b (1)");
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("torch_version") = TORCH_VERSION;
#ifdef REFIMPL_CUDA_ARCHES
  m.attr("cuda_arches") = REFIMPL_CUDA_ARCHES;
#else
  m.attr("cuda_arches") = "";
#endif
  m.def("isa", &isa_name, "The CPU instruction set in use: avx512, avx2 or plain");
  m.def("use_isa", &use_isa, "For tests: use another instruction set; 'best' for the widest");

  py::module_ formulas = m.def_submodule("formulas", "csrc/formulas.h, elementwise over numpy arrays");
  define_formulas<float>(formulas, "_float32");
  define_formulas<double>(formulas, "_float64");
  formulas.def("weighted_mean", py::vectorize(&weighted_mean));
  formulas.def("gradient_scale", py::vectorize(&gradient_scale));
  formulas.def("sigmoid", py::vectorize([](float z) { return sigmoid(z); }));
  formulas.def("reciprocal_deviation", py::vectorize(&reciprocal_deviation<double>));
  formulas.def("philox4x32", py::vectorize(&philox_word), "Word i of the block with this counter and key");
  formulas.def("log_uniform", py::vectorize(&log_uniform));
  formulas.def("radius", py::vectorize(&radius));
  formulas.def("normal", py::vectorize(&normal_of_words), "Lane 0 or 1 of two words");
  formulas.def("narrow_bfloat16", py::vectorize([](float x) { return narrow<bf16>(x).bits; }));
  formulas.def("widen_bfloat16", py::vectorize([](uint16_t x) { return widen(bf16{x}); }));
  formulas.def("narrow_float16", py::vectorize([](float x) { return narrow<f16>(x).bits; }));
  formulas.def("widen_float16", py::vectorize([](uint16_t x) { return widen(f16{x}); }));
  formulas.def("welford_merge", [](std::array<double, 3> a, std::array<double, 3> b) {
    const Moments merged = welford_merge({a[0], a[1], a[2]}, {b[0], b[1], b[2]});
    return py::make_tuple(merged.count, merged.mean, merged.m2);
  });
}
