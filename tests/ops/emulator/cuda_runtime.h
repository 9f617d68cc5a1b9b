// The part of CUDA that csrc/*.cu use, on the CPU: every thread of a block is a fiber, and blocks run one at a
// time.
//
// It executes the kernels' own source, so that indexing, tails, reductions and barriers are tested on machines
// without a GPU. It says nothing about speed, nor about data races between threads without a barrier between
// them. A barrier that not every thread reaches aborts.
#pragma once

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

struct Index {
  unsigned x = 0;
};
inline Index threadIdx, blockIdx, gridDim;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline void __stwb(uint4* to, uint4 value) { *to = value; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// One multiprocessor: small problems already take every block more than one round.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 1;
  return cudaSuccess;
}

// Memory and streams, as csrc/standalone_check.cu uses them: the device's memory is the host's, and all is done
// at once.
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
constexpr unsigned cudaStreamNonBlocking = 1;

inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid argument" : "no error"; }

inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = malloc(bytes);
  return *memory ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaFree(void* memory) {
  free(memory);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  memset(memory, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

namespace emulator {

constexpr unsigned THREADS = 256, WARP = 32;
constexpr size_t STACK = 256 * 1024;
enum class State { ready, at_block_barrier, at_warp_barrier, done };

// A fiber is made once, by makecontext, and runs one thread after another. It is left and entered by _longjmp, which,
// unlike swapcontext, asks the system for nothing.
struct Fiber {
  jmp_buf place;
  bool begun = false;
  State state;
  std::vector<char> stack = std::vector<char>(STACK);
  char exchanged[sizeof(double)];
};

inline std::vector<Fiber> fibers(THREADS);
inline jmp_buf scheduler;
inline const std::function<void()>* body;

inline void wait_at(State barrier) {
  Fiber& fiber = fibers[threadIdx.x];
  fiber.state = barrier;
  if (!_setjmp(fiber.place)) _longjmp(scheduler, 1);
}

inline void run_threads() {
  for (;;) {
    (*body)();
    wait_at(State::done);
  }
}

inline void resume(Fiber& fiber) {
  if (_setjmp(scheduler)) return;  // from its next barrier
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.data();
  context.uc_stack.ss_size = fiber.stack.size();
  context.uc_link = nullptr;
  makecontext(&context, run_threads, 0);
  setcontext(&context);
}

// Releases threads [begin, end) from a barrier if all of them are waiting there.
inline bool release(unsigned begin, unsigned end, State barrier) {
  unsigned waiting = 0;
  for (unsigned t = begin; t < end; ++t) waiting += fibers[t].state == barrier;
  if (waiting == 0 || waiting < end - begin) return false;
  for (unsigned t = begin; t < end; ++t) fibers[t].state = State::ready;
  return true;
}

inline void run_block(const std::function<void()>& kernel) {
  body = &kernel;
  for (Fiber& fiber : fibers) fiber.state = State::ready;
  for (bool moved = true; moved;) {
    moved = false;
    for (unsigned t = 0; t < THREADS; ++t) {
      if (fibers[t].state != State::ready) continue;
      threadIdx.x = t;
      resume(fibers[t]);
      moved = true;
    }
    for (unsigned t = 0; t < THREADS; t += WARP) moved |= release(t, t + WARP, State::at_warp_barrier);
    moved |= release(0, THREADS, State::at_block_barrier);
  }
  for (const Fiber& fiber : fibers)
    if (fiber.state != State::done) {
      fprintf(stderr, "a barrier that not every thread reached\n");
      abort();
    }
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait_at(emulator::State::at_block_barrier); }

namespace emulator {

// What the thread `lane` of this warp has, or `own` where there is none.
template <class T>
T exchanged(T own, unsigned lane) {
  const unsigned thread = threadIdx.x;
  memcpy(fibers[thread].exchanged, &own, sizeof own);
  wait_at(State::at_warp_barrier);
  T other = own;
  if (lane < WARP) memcpy(&other, fibers[thread / WARP * WARP + lane].exchanged, sizeof other);
  wait_at(State::at_warp_barrier);
  return other;
}

}  // namespace emulator

template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
  return emulator::exchanged(value, threadIdx.x % emulator::WARP + distance);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::exchanged(value, threadIdx.x % emulator::WARP ^ unsigned(mask));
}

namespace refimpl::cuda {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), unsigned blocks, cudaStream_t, Arguments... arguments) {
  gridDim.x = blocks;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) emulator::run_block([&] { kernel(arguments...); });
  return cudaSuccess;
}

}  // namespace refimpl::cuda
