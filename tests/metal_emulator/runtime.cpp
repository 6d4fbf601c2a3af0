// Runs a Metal kernel on one CPU thread: every GPU thread of a threadgroup is a fiber, which runs until it reaches a
// simdgroup operation or a threadgroup barrier. Which fiber runs next is the schedule: forward, backward or pseudo-random,
// all of them legal on a GPU, so a kernel whose result depends on the schedule has a race.
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <map>
#include <string>
#include <vector>

#include "runtime.h"

namespace {

constexpr size_t kStack = 64 * 1024;
constexpr size_t kPage = 4096;
constexpr size_t kThreadgroupMemory = 32 * 1024;
constexpr uint32_t kMaxThreads = 1024;
constexpr size_t kCanary = 256;  // bytes after threadgroup storage that nobody may write
constexpr int kNoSite = 0x7fffffff;

// ------------------------------------------------------------------------------------------------ switching fibers

#if defined(__x86_64__)
extern "C" void msl_switch(void** from, void* to);
asm(R"(.text
.globl msl_switch
.type msl_switch,@function
msl_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size msl_switch, .-msl_switch)");
struct Context {
  void* stack_pointer = nullptr;
  void start(char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + kStack - 16);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    stack_pointer = top;
  }
  void go(Context& to) { msl_switch(&stack_pointer, to.stack_pointer); }
};
#else
struct Context {
  ucontext_t c;
  void start(char* stack, void (*entry)()) {
    getcontext(&c);
    c.uc_stack.ss_sp = stack;
    c.uc_stack.ss_size = kStack;
    c.uc_link = nullptr;
    makecontext(&c, entry, 0);
  }
  void go(Context& to) { swapcontext(&c, &to.c); }
};
#endif

enum class State { ready, in_simd, at_barrier, done };

struct Fiber {
  Context context;
  char* stack;
  State state;
  int site;  // the source line it waits at
  uint8_t value[32];
  msl_thread thread;
};

struct Simdgroup {
  uint8_t values[32][32];
  uint32_t active;
};

std::vector<Fiber> fibers;
std::vector<Simdgroup> simdgroups;
Context scheduler;
Fiber* current;
struct Storage {
  char* memory;
  size_t bytes;
};
std::map<int, Storage> threadgroup_memory;
size_t threadgroup_bytes;
std::string error;
uint64_t simd_operations, divergent_operations, barriers;
void (*kernel)(void**, const msl_thread*);
void** arguments;

void wait(State state, int site) {
  current->state = state;
  current->site = site;
  current->context.go(scheduler);
}

void run_fiber() {
  kernel(arguments, &current->thread);
  current->state = State::done;
  current->context.go(scheduler);
  abort();
}

}  // namespace

// ---------------------------------------------------------------------------------------------- called by the shim

extern "C" {

void msl_fail(const char* what, int site) {
  if (error.empty()) error = "line " + std::to_string(site) + ": " + what;
}

msl_lanes msl_simd(const void* value, uint32_t size, int site) {
  memcpy(current->value, value, size);
  wait(State::in_simd, site);
  Simdgroup& group = simdgroups[current->thread.simdgroup];
  return {group.values, group.active, current->thread.lane};
}

void msl_barrier(int site) { wait(State::at_barrier, site); }

void* msl_threadgroup_storage(size_t bytes, int id) {
  auto found = threadgroup_memory.find(id);
  if (found != threadgroup_memory.end()) return found->second.memory;
  const size_t rounded = (bytes + 63) / 64 * 64;
  char* memory = static_cast<char*>(aligned_alloc(64, rounded + kCanary));
  memset(memory, 0xff, rounded + kCanary);  // NaN in every float type: what is read before it was written shows
  threadgroup_bytes += bytes;
  if (threadgroup_bytes > kThreadgroupMemory) msl_fail("more than 32 KiB of threadgroup memory", id);
  threadgroup_memory[id] = {memory, bytes};
  return memory;
}

// ------------------------------------------------------------------------------------------------ called by Python

// order: 0 forward, 1 backward, more: a seed. statistics: simd operations, divergent ones, barriers, threadgroup bytes.
int msl_run(void (*entry)(void**, const msl_thread*), void** buffers, const uint32_t* grid, const uint32_t* threadgroup,
            int order, uint64_t* statistics, char* message, int message_size) {
  kernel = entry;
  arguments = buffers;
  error.clear();
  simd_operations = divergent_operations = barriers = 0;
  size_t most_bytes = 0;
  uint32_t size[3], groups[3];
  for (int i = 0; i < 3; i++) {
    size[i] = threadgroup[i] < grid[i] ? threadgroup[i] : grid[i];
    groups[i] = (grid[i] + size[i] - 1) / size[i];
  }
  const uint64_t most_threads = uint64_t(size[0]) * size[1] * size[2];
  if (most_threads > kMaxThreads) {
    snprintf(message, message_size, "a threadgroup of %llu threads, %u are allowed", (unsigned long long)most_threads, kMaxThreads);
    return 1;
  }
  while (fibers.size() < most_threads) {
    fibers.emplace_back();
    fibers.back().stack = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  uint64_t state = 88172645463325252ull + order;
  auto random = [&] {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  };
  for (uint32_t n = 0; n < groups[0] * groups[1] * groups[2] && error.empty(); n++) {
    const uint32_t at[3] = {n % groups[0], n / groups[0] % groups[1], n / groups[0] / groups[1]};
    uint32_t here[3];  // threadgroups at the edge of the grid are smaller
    for (int i = 0; i < 3; i++) here[i] = grid[i] - at[i] * size[i] < size[i] ? grid[i] - at[i] * size[i] : size[i];
    const uint32_t threads = here[0] * here[1] * here[2], simds = (threads + 31) / 32;
    simdgroups.resize(simds);
    for (auto& entry : threadgroup_memory) free(entry.second.memory);
    threadgroup_memory.clear();
    threadgroup_bytes = 0;
    for (uint32_t i = 0; i < threads; i++) {
      const uint32_t x = i % here[0], y = i / here[0] % here[1], z = i / here[0] / here[1];
      Fiber& f = fibers[i];
      f.state = State::ready;
      f.thread = {{at[0] * size[0] + x, at[1] * size[1] + y, at[2] * size[2] + z},
                  {x, y, z},
                  {at[0], at[1], at[2]},
                  {groups[0], groups[1], groups[2]},
                  {grid[0], grid[1], grid[2]},
                  {here[0], here[1], here[2]},
                  {size[0], size[1], size[2]},
                  i, i % 32, i / 32, simds};
      f.context.start(f.stack, run_fiber);
    }
    std::vector<uint32_t> turns(simds);
    for (uint32_t i = 0; i < simds; i++) turns[i] = order == 1 ? simds - 1 - i : i;
    if (order > 1)
      for (uint32_t i = simds; i > 1; i--) std::swap(turns[i - 1], turns[random() % i]);
    while (error.empty()) {
      for (uint32_t s : turns) {  // each simdgroup up to its next barrier
        const uint32_t low = s * 32, high = low + 32 < threads ? low + 32 : threads, width = high - low;
        const uint32_t shift = order > 1 ? random() % width : 0;
        for (;;) {
          for (uint32_t k = 0; k < width; k++) {
            current = &fibers[order == 1 ? high - 1 - k : low + (k + shift) % width];
            if (current->state == State::ready) scheduler.go(current->context);
          }
          int site = kNoSite;
          uint32_t live = 0;
          for (uint32_t i = low; i < high; i++) {
            if (fibers[i].state != State::done) live |= 1u << (i - low);
            if (fibers[i].state == State::in_simd && fibers[i].site < site) site = fibers[i].site;
          }
          if (site == kNoSite) break;
          Simdgroup& group = simdgroups[s];
          group.active = 0;
          for (uint32_t i = low; i < high; i++)
            if (fibers[i].state == State::in_simd && fibers[i].site == site) {
              group.active |= 1u << (i - low);
              memcpy(group.values[i - low], fibers[i].value, 32);
              fibers[i].state = State::ready;
            }
          simd_operations++;
          divergent_operations += group.active != live;
        }
      }
      uint32_t waiting = 0;
      int site = -1;
      for (uint32_t i = 0; i < threads; i++)
        if (fibers[i].state == State::at_barrier) {
          if (site >= 0 && fibers[i].site != site) msl_fail("threads wait at different barriers", fibers[i].site);
          site = fibers[i].site;
          waiting++;
        }
      if (!waiting) break;
      if (waiting < threads) msl_fail("a barrier that threads which returned never reach", site);
      barriers++;
      for (uint32_t i = 0; i < threads; i++) fibers[i].state = State::ready;
    }
    for (auto& entry : threadgroup_memory)
      for (size_t i = entry.second.bytes; i < entry.second.bytes + kCanary; i++)
        if (static_cast<uint8_t>(entry.second.memory[i]) != 0xff) msl_fail("a write beyond threadgroup storage", entry.first);
    if (threadgroup_bytes > most_bytes) most_bytes = threadgroup_bytes;
  }
  statistics[0] = simd_operations;
  statistics[1] = divergent_operations;
  statistics[2] = barriers;
  statistics[3] = most_bytes;
  snprintf(message, message_size, "%s", error.c_str());
  return error.empty() ? 0 : 2;
}

}  // extern "C"

// ------------------------------------------------------------------------- buffers that end at a page nobody may touch

namespace {

std::vector<std::pair<char*, size_t>> guarded;
char signal_stack[65536];

void on_fault(int, siginfo_t* info, void*) {
  char line[160];
  int n = snprintf(line, sizeof line, "out-of-bounds access at %p", info->si_addr);
  for (size_t i = 0; i < guarded.size(); i++) {
    const char* at = static_cast<char*>(info->si_addr);
    if (at >= guarded[i].first && at < guarded[i].first + guarded[i].second + 2 * kPage)
      n += snprintf(line + n, sizeof line - n, " beside buffer %zu", i);
  }
  line[n++] = '\n';
  if (write(2, line, n)) {
  }
  _exit(139);
}

}  // namespace

extern "C" {

void msl_free_all() {
  for (auto& g : guarded) munmap(g.first, g.second + 2 * kPage);
  guarded.clear();
}

// `bytes` bytes whose end (at_end) or start lies at a guard page; there is one on the other side too.
void* msl_allocate(size_t bytes, int at_end) {
  static bool handled = false;
  if (!handled) {
    handled = true;
    stack_t alternative = {};
    alternative.ss_sp = signal_stack;
    alternative.ss_size = sizeof signal_stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
  }
  size_t rounded = (bytes + kPage - 1) / kPage * kPage;
  if (!rounded) rounded = kPage;
  char* base = static_cast<char*>(mmap(nullptr, rounded + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  memset(base + kPage, 0xff, rounded);
  mprotect(base, kPage, PROT_NONE);
  mprotect(base + kPage + rounded, kPage, PROT_NONE);
  guarded.push_back({base, rounded});
  return base + kPage + (at_end ? rounded - bytes : 0);
}

}  // extern "C"
