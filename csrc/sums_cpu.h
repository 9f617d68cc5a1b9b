// Sums of the CPU kernels, with the same bits on every instruction set.
#pragma once

#include "cpu.h"

namespace refimpl::cpu {

constexpr int LANES = 64;  // independent partial sums; the same on every instruction set, so the same bits

template <class A>
REFIMPL_FN double sum_of_lanes(A (&lanes)[LANES]) {
  for (int half = LANES / 2; half >= 8; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  double sums[8];
  for (int l = 0; l < 8; ++l) sums[l] = double(lanes[l]);
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

template <class A>
struct Two {
  A first, second;
};

// The two sums of terms(i) for i < count in A, chunk by chunk into float64, in a fixed order.
template <class A, class Terms>
REFIMPL_FN Two<double> two_sums_over(int64_t count, Terms terms) {
  Two<double> totals = {};
  for (int64_t start = 0; start < count; start += CHUNK) {
    alignas(64) A first[LANES] = {}, second[LANES] = {};
    const int64_t end = smaller(start + CHUNK, count);
    const auto add = [&](int l, const Two<A>& term) __attribute__((always_inline)) {
      first[l] += term.first;
      second[l] += term.second;
    };
    int64_t i = start;
    for (; i + LANES <= end; i += LANES)
      for (int l = 0; l < LANES; ++l) add(l, terms(i + l));
    for (int l = 0; i + l < end; ++l) add(l, terms(i + l));
    totals.first += sum_of_lanes(first);
    totals.second += sum_of_lanes(second);
  }
  return totals;
}

// Σ term(i) for i < count in A, chunk by chunk into a float64, in a fixed order.
template <class A, class Term>
REFIMPL_FN double sum_over(int64_t count, Term term) {
  double total = 0;
  for (int64_t start = 0; start < count; start += CHUNK) {
    alignas(64) A lanes[LANES] = {};
    const int64_t end = smaller(start + CHUNK, count);
    int64_t i = start;
    for (; i + LANES <= end; i += LANES)
      for (int l = 0; l < LANES; ++l) lanes[l] += term(i + l);
    for (int l = 0; i + l < end; ++l) lanes[l] += term(i + l);
    total += sum_of_lanes(lanes);
  }
  return total;
}

}  // namespace refimpl::cpu
