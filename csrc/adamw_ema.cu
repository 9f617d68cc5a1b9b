// adamw_ema_ on CUDA: one pass over weights, gradients, moments and averages (Loshchilov & Hutter 2019).
//
// A launch takes many tensors: their pointers are the kernel's argument, so that nothing is copied to the
// device first and a captured graph holds them.
#include "grid.cuh"

namespace refimpl::cuda {
namespace {

constexpr int VECTOR = sizeof(Quad) / sizeof(float);
constexpr int UNROLL = 2;
constexpr int64_t TILE = int64_t(THREADS) * VECTOR * UNROLL;

// Kernel arguments hold 4 KB on every architecture and driver.
constexpr int MOST_STEPS = 448;
constexpr int MOST_TENSORS = 56;

struct Steps {
  float* steps[MOST_STEPS];
  int count;
  AdamWRule rule;
  const float* found_inf;
  AdamWCorrection* corrections;
};

struct Entry {
  AdamWTensor tensor;
  int64_t first_tile;
};

struct Table {
  Entry entries[MOST_TENSORS];
  int used;
  int64_t tiles;
  AdamWRule rule;
  const float *scale, *found_inf;
  const AdamWCorrection* corrections;  // of the first entry; the others' follow
};

static_assert(sizeof(Steps) <= 4096 && sizeof(Table) <= 4096);

// Counts the step of each tensor, and computes its correction.
__global__ void __launch_bounds__(THREADS) steps_kernel(const __grid_constant__ Steps p) {
  if (*p.found_inf != 0) return;
  for (int k = blockIdx.x * THREADS + threadIdx.x; k < p.count; k += gridDim.x * THREADS) {
    const float step = *p.steps[k] + 1;
    *p.steps[k] = step;
    p.corrections[k] = correction_of(p.rule, double(step));
  }
}

template <bool ALIGNED, bool AVERAGE>
__global__ void __launch_bounds__(THREADS) adamw_ema_kernel(const __grid_constant__ Table p) {
  constexpr int V = VECTOR, U = UNROLL;
  if (*p.found_inf != 0) return;
  const float scale = *p.scale;
  int k = 0;  // the tile's entry; a block's tiles ascend
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    while (k + 1 < p.used && tile >= p.entries[k + 1].first_tile) ++k;
    const AdamWTensor& t = p.entries[k].tensor;
    const AdamWCorrection correction = p.corrections[k];
    const int64_t n = t.count;
    const int64_t start = (tile - p.entries[k].first_tile) * TILE + int64_t(threadIdx.x) * V;

    float weight[U][V] = {}, gradient[U][V] = {}, exp_avg[U][V] = {}, exp_avg_sq[U][V] = {},
          average[U][V] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t i = start + u * THREADS * V;
      if (i >= n) continue;
      load<ALIGNED>(weight[u], t.weight, i, n);
      load<ALIGNED>(gradient[u], t.gradient, i, n);
      load<ALIGNED>(exp_avg[u], t.exp_avg, i, n);
      load<ALIGNED>(exp_avg_sq[u], t.exp_avg_sq, i, n);
      if constexpr (AVERAGE) load<ALIGNED>(average[u], t.average, i, n);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t i = start + u * THREADS * V;
      if (i >= n) continue;
#pragma unroll
      for (int l = 0; l < V; ++l)
        adamw_ema_element<AVERAGE>(weight[u][l], gradient[u][l], exp_avg[u][l], exp_avg_sq[u][l],
                                   average[u][l], scale, p.rule, correction);
      store<ALIGNED>(t.weight, i, n, weight[u]);
      store<ALIGNED>(t.exp_avg, i, n, exp_avg[u]);
      store<ALIGNED>(t.exp_avg_sq, i, n, exp_avg_sq[u]);
      if constexpr (AVERAGE) store<ALIGNED>(t.average, i, n, average[u]);
    }
  }
}

cudaError_t count_steps(const AdamWProblem& p, cudaStream_t stream) {
  for (int64_t first = 0; first < p.tensor_count; first += MOST_STEPS) {
    Steps steps = {};
    const int64_t rest = p.tensor_count - first;
    steps.count = int(rest < MOST_STEPS ? rest : MOST_STEPS);
    for (int k = 0; k < steps.count; ++k) steps.steps[k] = p.tensors[first + k].step;
    steps.rule = p.rule;
    steps.found_inf = p.found_inf;
    steps.corrections = p.corrections + first;
    const unsigned blocks = unsigned(divide_up(steps.count, THREADS));
    if (const cudaError_t error = launch(steps_kernel, blocks, stream, steps)) return error;
  }
  return cudaSuccess;
}

bool is_aligned(const AdamWTensor& t) {
  return aligned(t.weight) && aligned(t.gradient) && aligned(t.exp_avg) && aligned(t.exp_avg_sq) &&
         aligned(t.average) && t.count % VECTOR == 0;
}

template <class F>
cudaError_t choose(const AdamWTensor& t, F f) {
  if (is_aligned(t))
    return t.average ? f.template operator()<true, true>() : f.template operator()<true, false>();
  return t.average ? f.template operator()<false, true>() : f.template operator()<false, false>();
}

bool same_kernel(const AdamWTensor& a, const AdamWTensor& b) {
  return is_aligned(a) == is_aligned(b) && (a.average == nullptr) == (b.average == nullptr);
}

}  // namespace

// Consecutive tensors that one kernel can take share a launch.
cudaError_t adamw_ema(const AdamWProblem& p, cudaStream_t stream) {
  if (const cudaError_t error = count_steps(p, stream)) return error;
  for (int64_t first = 0; first < p.tensor_count;) {
    Table table = {};
    table.rule = p.rule;
    table.scale = p.scale;
    table.found_inf = p.found_inf;
    table.corrections = p.corrections + first;
    const AdamWTensor& leader = p.tensors[first];
    for (; first < p.tensor_count && table.used < MOST_TENSORS && same_kernel(leader, p.tensors[first]);
         ++first) {
      table.entries[table.used++] = {p.tensors[first], table.tiles};
      table.tiles += divide_up(p.tensors[first].count, TILE);
    }
    if (table.tiles == 0) continue;
    unsigned blocks = 0;
    if (const cudaError_t error = blocks_for(table.tiles, &blocks)) return error;
    const cudaError_t error = choose(leader, [&]<bool ALIGNED, bool AVERAGE>() {
      return launch(adamw_ema_kernel<ALIGNED, AVERAGE>, blocks, stream, table);
    });
    if (error) return error;
  }
  return cudaSuccess;
}

}  // namespace refimpl::cuda
