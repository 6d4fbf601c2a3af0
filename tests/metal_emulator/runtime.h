// What the shim and the runtime agree on.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct alignas(16) msl_uint3 {
  uint32_t x, y, z;
};

// A thread's place, by the names of Metal's attributes.
struct msl_thread {
  msl_uint3 thread_position_in_grid, thread_position_in_threadgroup, threadgroup_position_in_grid, threadgroups_per_grid,
      threads_per_grid, threads_per_threadgroup, dispatch_threads_per_threadgroup;
  uint32_t thread_index, lane, simdgroup, simdgroups;
};

// The values of all 32 lanes, and which lanes take part.
struct msl_lanes {
  const uint8_t (*values)[32];
  uint32_t active, lane;
};

extern "C" {
msl_lanes msl_simd(const void* value, uint32_t size, int site);
void msl_barrier(int site);
void* msl_threadgroup_storage(size_t bytes, int id);
void msl_fail(const char* what, int site);
}
