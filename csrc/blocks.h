// Memory of the CPU kernels' large outputs: freed blocks are cached for the next call instead of being
// returned to the system.
//
// glibc returns a large freed block to the system, and the next allocation takes a page fault for every 4 KB
// it writes: as much time as the kernel itself, and several times that when two outputs alternate.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <iterator>
#include <list>
#include <mutex>

namespace refimpl::bind {

class Blocks final : public c10::Allocator {
 public:
  static constexpr size_t SMALLEST = 128 << 10;    // smaller blocks glibc keeps itself (M_MMAP_THRESHOLD)
  static constexpr size_t MOST_BLOCKS = 4;         // that wait: noised latents, gradient, and those before
  static constexpr size_t MOST_BYTES = 512 << 20;  // of all waiting blocks together

  // The process-wide instance; never destroyed, as tensors may outlive every static.
  static Blocks* instance() {
    static auto* blocks = new Blocks;
    return blocks;
  }

  c10::DataPtr allocate(size_t bytes) override {
    Block* block = waiting(bytes);
    if (block == nullptr) block = new Block{c10::alloc_cpu(bytes), bytes};
    return {block->data, block, &give_back, c10::Device(c10::kCPU)};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  std::mutex mutex_;
  std::list<Block*> waiting_;  // the one freed last comes first: it may still lie in the cache
  size_t waiting_bytes_ = 0;

  // A cached block at most a quarter too large (buckets differ in area by less), or null.
  Block* waiting(size_t bytes) {
    const std::lock_guard lock(mutex_);
    for (auto at = waiting_.begin(); at != waiting_.end(); ++at) {
      Block* block = *at;
      if (block->bytes < bytes || block->bytes > bytes + bytes / 4) continue;
      waiting_.erase(at);
      waiting_bytes_ -= block->bytes;
      return block;
    }
    return nullptr;
  }

  static void give_back(void* context) {
    Blocks& self = *instance();
    std::list<Block*> surplus;  // freed after the lock is
    {
      const std::lock_guard lock(self.mutex_);
      self.waiting_.push_front(static_cast<Block*>(context));
      self.waiting_bytes_ += self.waiting_.front()->bytes;
      while (self.waiting_.size() > MOST_BLOCKS || self.waiting_bytes_ > MOST_BYTES) {
        self.waiting_bytes_ -= self.waiting_.back()->bytes;
        surplus.splice(surplus.end(), self.waiting_, std::prev(self.waiting_.end()));
      }
    }
    for (Block* block : surplus) {
      c10::free_cpu(block->data);
      delete block;
    }
  }
};

}  // namespace refimpl::bind
