// CPU kernels: entry points for bind.cpp, and the choice of instruction set at run time.
//
// A kernel is a functor over a range of work items, written in plain C++. `run` instantiates it three times,
// and the compiler vectorises each copy for its instruction set. Everything it calls must be REFIMPL_FN
// (always inlined), or it would be compiled for the baseline. Processors other than x86-64 get one plain
// copy.
#pragma once

#include "adamw_ema.h"
#include "problem.h"

namespace refimpl::cpu {

enum class Isa { plain = 0, avx2 = 1, avx512 = 2 };

Isa best_isa();         // the widest that this processor and this build have
Isa isa();              // the one in use
void use_isa(Isa isa);  // for tests; falls back to the widest below it

// Work items of a problem, and the kernel on items [begin, end). Items may run in any order on any thread;
// the results do not depend on it. `finish_…` reduces the items' partial results in a fixed order.
int64_t noise_items(const NoiseProblem& p);
void noise(const NoiseProblem& p, int64_t begin, int64_t end);

int64_t loss_items(const LossProblem& p);
void loss(const LossProblem& p, int64_t begin, int64_t end);
void finish_loss(const LossProblem& p);

int64_t moments_items(const MomentsProblem& p);
int64_t moments_partials(const MomentsProblem& p);
void moments(const MomentsProblem& p, int64_t begin, int64_t end);
void finish_moments(const MomentsProblem& p);

void start_adamw_ema(const AdamWProblem& p);  // counts the steps; comes first
int64_t adamw_ema_items(const AdamWProblem& p);
void adamw_ema(const AdamWProblem& p, int64_t begin, int64_t end);
int64_t geglu_items(const GegluProblem& p);
void geglu(const GegluProblem& p, int64_t begin, int64_t end);

int64_t group_norm_items(const GroupNormProblem& p);
int64_t group_norm_partials(const GroupNormProblem& p);
void group_norm_silu(const GroupNormProblem& p, int64_t begin, int64_t end);
void finish_group_norm(const GroupNormProblem& p);

int64_t layer_norm_items(const LayerNormProblem& p);
int64_t layer_norm_partials(const LayerNormProblem& p);
void layer_norm(const LayerNormProblem& p, int64_t begin, int64_t end);
void finish_layer_norm(const LayerNormProblem& p);

constexpr int64_t CHUNK = 4096;  // elements per item: the streams of one item fit the first-level cache

REFIMPL_FN int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
REFIMPL_FN int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// 16-bit elements are handled as the two halves of a little-endian 32-bit word, so that vector code needs no
// shuffles: element PACK·w + k of a tensor is half k of word w. PACK is 1 for loops without 16-bit elements.
template <class... T>
constexpr int PACK = ((sizeof(T) == 2) || ...) ? 2 : 1;

template <int N, class T>
REFIMPL_FN arithmetic_t<T> load(const T* p, int64_t w, int k) {
  if constexpr (N == 2 && sizeof(T) == 2) {
    uint32_t word;
    memcpy(&word, p + 2 * w, sizeof word);
    return widen(T{uint16_t(k ? word >> 16 : word)});
  } else {
    return widen(p[N * w + k]);
  }
}

template <int N, class T>
REFIMPL_FN void store(T* p, int64_t w, const arithmetic_t<T>* values) {
  if constexpr (N == 2 && sizeof(T) == 2) {
    const uint32_t word = narrow_bits(values[0], T{}) | narrow_bits(values[1], T{}) << 16;
    memcpy(p + 2 * w, &word, sizeof word);
  } else {
    for (int k = 0; k < N; ++k) p[N * w + k] = narrow<T>(values[k]);
  }
}

#if defined(__x86_64__) && defined(__GNUC__)
#define REFIMPL_AVX2 __attribute__((noinline, target("avx2,fma,f16c")))
#if defined(__clang__)
#define REFIMPL_AVX512 __attribute__((noinline, target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#else
#define REFIMPL_AVX512     \
  __attribute__((noinline, \
                 target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")))
#endif

template <class Kernel, class Problem>
REFIMPL_AVX512 void run_avx512(const Problem& p, int64_t begin, int64_t end) {
  Kernel::items(p, begin, end);
}

template <class Kernel, class Problem>
REFIMPL_AVX2 void run_avx2(const Problem& p, int64_t begin, int64_t end) {
  Kernel::items(p, begin, end);
}
#endif

template <class Kernel, class Problem>
void run(const Problem& p, int64_t begin, int64_t end) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (isa() == Isa::avx512) return run_avx512<Kernel>(p, begin, end);
  if (isa() == Isa::avx2) return run_avx2<Kernel>(p, begin, end);
#endif
  Kernel::items(p, begin, end);
}

}  // namespace refimpl::cpu
