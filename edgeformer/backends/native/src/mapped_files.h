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

  // Gives back the whole pages of data that lies in a file; reading it again reads the file again. Pages that this process has
  // changed are its own, not the file's: then nothing is given back.
  void release(const void* data, size_t bytes) const {
#if defined(__linux__)
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), start = reinterpret_cast<uintptr_t>(data);
    for (const auto& [first, end] : ranges_) {
      if (start < first || start + bytes > end) continue;
      const uintptr_t from = (start + page - 1) / page * page, to = (start + bytes) / page * page;
      if (to > from && unchanged(from / page, to / page)) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
      return;
    }
#else
    (void)data, (void)bytes;
#endif
  }

 private:
#if defined(__linux__)
  // Whether pages [from, to) are the file's own, or not in memory.
  static bool unchanged(uintptr_t from, uintptr_t to) {
    std::FILE* map = std::fopen("/proc/self/pagemap", "re");
    if (map == nullptr) return false;
    constexpr uint64_t kPresent = uint64_t{1} << 63, kSwapped = uint64_t{1} << 62, kOfFile = uint64_t{1} << 61;
    uint64_t entries[512];
    bool same = fseeko(map, static_cast<off_t>(from * sizeof(uint64_t)), SEEK_SET) == 0;
    for (uintptr_t left = to - from; same && left > 0;) {
      const size_t wanted = left < 512 ? left : 512, got = std::fread(entries, sizeof(uint64_t), wanted, map);
      same = got == wanted;
      for (size_t i = 0; i < got; ++i) same = same && ((entries[i] & (kPresent | kSwapped)) == 0 || (entries[i] & kOfFile) != 0);
      left -= got;
    }
    std::fclose(map);
    return same;
  }
#endif
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges_;
};

}  // namespace edgeformer
