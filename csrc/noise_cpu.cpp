// add_noise, add_keyed_noise and keyed_normal on the CPU (N §2.1, S §2.5).
#include "keyed_cpu.h"

namespace refimpl::cpu {

Isa best_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::plain;
}

static Isa current = best_isa();

Isa isa() { return current; }

void use_isa(Isa wanted) { current = wanted < best_isa() ? wanted : best_isa(); }

namespace {

template <class X, class E>
REFIMPL_FN void noised_range(X* __restrict out, const X* __restrict x0, const E* __restrict eps,
                             arithmetic_t<X> alpha, arithmetic_t<X> sigma, int64_t count) {
  using A = arithmetic_t<X>;
  constexpr int N = PACK<X>;
  for (int64_t w = 0; w < count / N; ++w) {
    A x_t[N];
    for (int k = 0; k < N; ++k) x_t[k] = noised(alpha, A(load<N>(x0, w, k)), sigma, A(load<N>(eps, w, k)));
    store<N>(out, w, x_t);
  }
  if (count % N) {
    const int64_t last = count - 1;
    out[last] = narrow<X>(noised(alpha, A(widen(x0[last])), sigma, A(widen(eps[last]))));
  }
}

template <class X, bool KEYED>
struct AddNoise {
  static REFIMPL_FN void items(const NoiseProblem& p, int64_t begin, int64_t end) {
    using A = arithmetic_t<X>;
    const int64_t n = p.layout.sample();
    const int64_t chunk = chunk_elements(p.layout);
    const int64_t chunks = divide_up(n, chunk);
    KeyedScratch scratch(p.layout, p.noise);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / chunks, start = (item % chunks) * chunk;
      const int64_t count = smaller(chunk, n - start), at = b * n + start;
      const A alpha = p.alpha.at<A>(b), sigma = p.sigma.at<A>(b);
      X* out = static_cast<X*>(p.out) + at;
      const X* x0 = static_cast<const X*>(p.x0) + at;
      if constexpr (KEYED) {
        const float* eps = keyed_chunk(scratch, p.layout, p.noise, b, start, count);
        noised_range(out, x0, eps, alpha, sigma, count);
      } else {
        noised_range(out, x0, static_cast<const X*>(p.noise.eps) + at, alpha, sigma, count);
      }
    }
  }
};

struct KeyedNormal {
  static REFIMPL_FN void items(const NoiseProblem& p, int64_t begin, int64_t end) {
    const int64_t n = p.layout.sample();
    const int64_t chunks = divide_up(n, CHUNK);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / chunks, start = (item % chunks) * CHUNK;
      noise_in_order(static_cast<float*>(p.out) + b * n + start, p.layout, p.noise, b, start,
                     smaller(CHUNK, n - start));
    }
  }
};

template <class X>
void add_noise(const NoiseProblem& p, int64_t begin, int64_t end) {
  if (p.noise.keyed())
    run<AddNoise<X, true>>(p, begin, end);
  else
    run<AddNoise<X, false>>(p, begin, end);
}

}  // namespace

int64_t noise_items(const NoiseProblem& p) {
  if (p.layout.sample() == 0) return 0;
  return p.layout.batch * divide_up(p.layout.sample(), chunk_elements(p.layout));
}

void noise(const NoiseProblem& p, int64_t begin, int64_t end) {
  if (p.x0 == nullptr) return run<KeyedNormal>(p, begin, end);
  switch (p.dtype) {
    case DType::f32: return add_noise<float>(p, begin, end);
    case DType::bf16: return add_noise<bf16>(p, begin, end);
    case DType::f16: return add_noise<f16>(p, begin, end);
    case DType::f64: return add_noise<double>(p, begin, end);
  }
}

}  // namespace refimpl::cpu
