// geglu over torch tensors, once for all devices, and its derivative.
#pragma once

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "autograd.h"
#include "inputs.h"

namespace refimpl::bind {

inline GegluProblem geglu_problem(const Tensor& packed) {
  TORCH_CHECK_VALUE(packed.dim() >= 1 && packed.size(-1) % 2 == 0, "packed must have shape [..., 2·n], got ",
                    packed.sizes());
  GegluProblem p = {};
  p.width = packed.size(-1) / 2;
  p.rows = p.width == 0 ? 0 : packed.numel() / (2 * p.width);
  p.dtype = dtype_of("packed", packed);
  return p;
}

template <class Backend>
Tensor geglu(const Tensor& packed) {
  const typename Backend::Guard guard(packed.device());
  GegluProblem p = geglu_problem(packed);
  const Tensor rows = packed.contiguous();
  auto sizes = packed.sizes().vec();
  sizes.back() = p.width;
  Tensor out = Backend::empty(sizes, packed.options(), at::MemoryFormat::Contiguous);
  p.packed = rows.const_data_ptr();
  p.out = out.mutable_data_ptr();
  if (out.numel()) Backend::geglu(p);
  return out;
}

template <class Backend>
Tensor geglu_backward(const Tensor& grad, const Tensor& packed) {
  const typename Backend::Guard guard(packed.device());
  GegluProblem p = geglu_problem(packed);
  auto sizes = packed.sizes().vec();
  sizes.back() = p.width;
  TORCH_CHECK_VALUE(grad.sizes() == sizes && grad.device() == packed.device(), "grad has shape ",
                    grad.sizes(), " on ", grad.device(), " and packed ", packed.sizes(), " on ",
                    packed.device(), ": it must be that of geglu's result");
  const Tensor rows = packed.contiguous();
  const Tensor incoming = converted(grad, packed.scalar_type(), at::MemoryFormat::Contiguous);
  Tensor out = Backend::empty(packed.sizes(), packed.options(), at::MemoryFormat::Contiguous);
  p.packed = rows.const_data_ptr();
  p.incoming = incoming.const_data_ptr();
  p.out = out.mutable_data_ptr();
  if (out.numel()) Backend::geglu(p);
  return out;
}

template <class Backend>
void register_geglu(torch::Library& m) {
  m.impl("geglu", &geglu<Backend>);
  m.impl("geglu_backward", &geglu_backward<Backend>);
}

// ---- Autograd: only `packed` is kept, and the gate is computed again in the backward pass ----

inline auto& call_geglu() {
  static auto op = find_op<Tensor(const Tensor&)>("refimpl::geglu");
  return op;
}

inline auto& call_geglu_backward() {
  static auto op = find_op<Tensor(const Tensor&, const Tensor&)>("refimpl::geglu_backward");
  return op;
}

// The gradient as a function of its arguments; differentiating it raises.
struct GegluGradient : torch::autograd::Function<GegluGradient> {
  static Tensor forward(AutogradContext*, const Tensor& grad, const Tensor& packed) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_geglu_backward().call(grad, packed);
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false,
                                "geglu of the backend 'kernel' can be differentiated once, not twice: ",
                                "choose the backend 'reference' for second derivatives");
  }
};

inline Tensor geglu_backward_autograd(const Tensor& grad, const Tensor& packed) {
  return GegluGradient::apply(grad, packed);
}

struct Geglu : torch::autograd::Function<Geglu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& packed) {
    ctx->save_for_backward({packed});
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_geglu().call(packed);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {call_geglu_backward().call(grads[0], ctx->get_saved_variables()[0])};
  }
};

inline Tensor geglu_autograd(const Tensor& packed) {
  if (at::GradMode::is_enabled() && packed.requires_grad()) return Geglu::apply(packed);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_geglu().call(packed);
}

inline void register_geglu_autograd(torch::Library& m) {
  m.impl("geglu", &geglu_autograd);
  m.impl("geglu_backward", &geglu_backward_autograd);
}

}  // namespace refimpl::bind
