// v_loss and keyed_v_loss on the CPU: the loss and its gradient in one pass over the inputs (N §2.1, §2.4).
#include "keyed_cpu.h"

namespace refimpl::cpu {
namespace {

constexpr int LANES = 64;  // independent partial sums; the same on every instruction set, so the same bits

template <class A>
REFIMPL_FN double sum_of_lanes(const A* lanes) {
  double sum = 0;
  for (int l = 0; l < LANES; ++l) sum += lanes[l];
  return sum;
}

// Σ loss_term over the range; with GRAD, also writes grad = scale·loss_term_derivative.
template <bool GRAD, class P, class X, class E>
REFIMPL_FN double loss_range(P* __restrict grad, const P* __restrict prediction, const X* __restrict x0,
                             const E* __restrict eps, arithmetic_t<P> alpha, arithmetic_t<P> sigma,
                             arithmetic_t<P> scale, int64_t count) {
  using A = arithmetic_t<P>;
  constexpr int N = PACK<P, X>;
  constexpr int WORDS = LANES / N;
  alignas(64) A lanes[N][WORDS] = {};
  int64_t w = 0;
  for (; N * (w + WORDS) <= count; w += WORDS) {
    for (int l = 0; l < WORDS; ++l) {
      A slope[N];
      for (int k = 0; k < N; ++k) {
        const A v = velocity(alpha, A(load<N>(x0, w + l, k)), sigma, A(load<N>(eps, w + l, k)));
        const A guess = A(load<N>(prediction, w + l, k));
        lanes[k][l] += loss_term(guess, v);
        slope[k] = scale * loss_term_derivative(guess, v);
      }
      if constexpr (GRAD) store<N>(grad, w + l, slope);
    }
  }
  for (int64_t i = N * w; i < count; ++i) {
    const A v = velocity(alpha, A(widen(x0[i])), sigma, A(widen(eps[i])));
    const A guess = A(widen(prediction[i]));
    lanes[(i - N * w) % N][(i - N * w) / N] += loss_term(guess, v);
    if constexpr (GRAD) grad[i] = narrow<P>(scale * loss_term_derivative(guess, v));
  }
  return sum_of_lanes(&lanes[0][0]);
}

template <class P, class X, bool KEYED>
struct Loss {
  static REFIMPL_FN void items(const LossProblem& p, int64_t begin, int64_t end) {
    using A = arithmetic_t<P>;
    const int64_t n = p.layout.sample();
    const int64_t chunk = chunk_elements(p.layout);
    const int64_t chunks = divide_up(n, chunk);
    double* partial = static_cast<double*>(p.partial);
    KeyedScratch scratch(p.layout, p.noise);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / chunks, start = (item % chunks) * chunk;
      const int64_t count = smaller(chunk, n - start), at = b * n + start;
      const A incoming = p.incoming.data ? p.incoming.at<A>(b) : A(p.expected);
      if (p.only_unexpected && incoming == A(p.expected)) continue;
      const A alpha = p.alpha.at<A>(b), sigma = p.sigma.at<A>(b);
      const A scale = A(gradient_scale(incoming, p.weight.at<double>(b), double(n)));
      const P* prediction = static_cast<const P*>(p.prediction) + at;
      const X* x0 = static_cast<const X*>(p.x0) + at;
      P* grad = p.grad ? static_cast<P*>(p.grad) + at : nullptr;
      const auto over = [&](const auto* eps) __attribute__((always_inline)) {
        return grad ? loss_range<true>(grad, prediction, x0, eps, alpha, sigma, scale, count)
                    : loss_range<false>(grad, prediction, x0, eps, alpha, sigma, scale, count);
      };
      double sum;
      if constexpr (KEYED)
        sum = over(keyed_chunk(scratch, p.layout, p.noise, b, start, count));
      else
        sum = over(static_cast<const X*>(p.noise.eps) + at);
      if (p.loss) partial[item] = sum;
    }
  }
};

template <class P, class X>
void loss_of(const LossProblem& p, int64_t begin, int64_t end) {
  if (p.noise.keyed())
    run<Loss<P, X, true>>(p, begin, end);
  else
    run<Loss<P, X, false>>(p, begin, end);
}

template <class A>
void finish(const LossProblem& p) {
  const int64_t n = p.layout.sample();
  const int64_t chunks = divide_up(n, chunk_elements(p.layout));
  const double* partial = static_cast<const double*>(p.partial);
  for (int64_t b = 0; b < p.layout.batch; ++b) {
    double sum = 0;
    for (int64_t k = 0; k < chunks; ++k) sum += partial[b * chunks + k];
    static_cast<A*>(p.loss)[b] = A(weighted_mean(p.weight.at<double>(b), sum, double(n)));
  }
}

}  // namespace

int64_t loss_items(const LossProblem& p) {
  if (p.layout.sample() == 0) return 0;
  return p.layout.batch * divide_up(p.layout.sample(), chunk_elements(p.layout));
}

void loss(const LossProblem& p, int64_t begin, int64_t end) {
  const bool mixed = p.latent_dtype != p.prediction_dtype;
  switch (p.prediction_dtype) {
    case DType::f32: return loss_of<float, float>(p, begin, end);
    case DType::bf16: return mixed ? loss_of<bf16, float>(p, begin, end) : loss_of<bf16, bf16>(p, begin, end);
    case DType::f16: return mixed ? loss_of<f16, float>(p, begin, end) : loss_of<f16, f16>(p, begin, end);
    case DType::f64: return loss_of<double, double>(p, begin, end);
  }
}

void finish_loss(const LossProblem& p) {
  if (p.prediction_dtype == DType::f64)
    finish<double>(p);
  else
    finish<float>(p);
}

}  // namespace refimpl::cpu
