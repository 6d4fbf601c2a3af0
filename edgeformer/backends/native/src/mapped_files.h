// Files that this process has mapped: pages that were read once can be given back, so that a model isn't in memory twice.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#endif

namespace edgeformer {

class MappedFiles {
 public:
  MappedFiles() {
#if defined(__linux__)
    std::FILE* maps = std::fopen("/proc/self/maps", "re");
    if (maps == nullptr) return;
    char line[512];
    for (unsigned long start, end, inode; std::fgets(line, sizeof(line), maps) != nullptr;)
      if (std::sscanf(line, "%lx-%lx %*s %*x %*s %lu", &start, &end, &inode) == 3 && inode != 0) ranges_.emplace_back(start, end);
    std::fclose(maps);
#endif
  }

  // Gives back the whole pages of data that nothing has changed, if it lies in a file; reading it again reads the file again.
  void release(const void* data, size_t bytes) const {
#if defined(__linux__)
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), start = reinterpret_cast<uintptr_t>(data);
    for (const auto& [first, end] : ranges_) {
      if (start < first || start + bytes > end) continue;
      const uintptr_t from = (start + page - 1) / page * page, to = (start + bytes) / page * page;
      if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
      return;
    }
#else
    (void)data, (void)bytes;
#endif
  }

 private:
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges_;
};

}  // namespace edgeformer
