// Memory in 2 MB pages where the system has them: a stream of weights then takes far fewer walks of the page table.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace edgeformer {

// Zeroed, aligned memory that is freed with its owner.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) {
    constexpr size_t kPage = size_t{2} << 20;
    if (bytes == 0) return;
#if defined(__linux__)
    size_ = (bytes + kPage - 1) / kPage * kPage + kPage;
    void* got = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) throw std::bad_alloc();
    base_ = got;
    data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(got) + kPage - 1) / kPage * kPage);
    madvise(data_, size_ - kPage, MADV_HUGEPAGE);  // before the first touch; without it these are plain pages
#else
    base_ = calloc(1, bytes + 128);
    if (base_ == nullptr) throw std::bad_alloc();
    data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(base_) + 127) / 128 * 128);
#endif
  }
  ~Memory() {
    if (base_ == nullptr) return;
#if defined(__linux__)
    munmap(base_, size_);
#else
    free(base_);
#endif
  }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  uint8_t* data() const { return data_; }

 private:
  void swap(Memory& other) {
    std::swap(base_, other.base_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  void* base_ = nullptr;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace edgeformer
