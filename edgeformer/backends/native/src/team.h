// Threads that run the same list of phases. A phase is some number of chunks, which threads take from a counter; it is over when
// all chunks are done. No thread ever waits for another to arrive: one thread alone finishes everything, and a thread that was
// descheduled finds the phases that it missed done.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace edgeformer {

inline void pause_thread() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The counters of the current phase. Phases are numbered upwards for ever; the last thread to finish one opens the next.
class Phases {
 public:
  uint32_t current() const { return static_cast<uint32_t>(word_.load(std::memory_order_acquire) >> 32); }

  // Takes part in phase `number` of `count` > 0 chunks, until it is over.
  template <typename Body>
  void run(uint32_t number, uint32_t count, const Body& body) {
    uint32_t mine = 0;
    for (;;) {
      uint64_t word = word_.load(std::memory_order_acquire);
      if (static_cast<uint32_t>(word >> 32) != number) return;
      const uint32_t chunk = static_cast<uint32_t>(word);
      if (chunk >= count) break;
      if (!word_.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) continue;
      body(chunk);
      ++mine;
    }
    if (mine > 0 && done_.fetch_add(mine, std::memory_order_acq_rel) + mine == count) {
      done_.store(0, std::memory_order_relaxed);
      word_.store(static_cast<uint64_t>(number + 1) << 32, std::memory_order_release);
      return;
    }
    for (int spins = 0; current() == number;) {
      pause_thread();
      if (++spins > 200) std::this_thread::yield(), spins = 0;
    }
  }

 private:
  alignas(128) std::atomic<uint64_t> word_{0};  // the phase's number, and the next chunk
  alignas(128) std::atomic<uint32_t> done_{0};
};

// Threads that run the same work. Some may come late, or not at all: `Phases` needs one.
class Crew {
 public:
  virtual ~Crew() = default;
  virtual int size() const = 0;
  // Runs work(thread) on some threads at once; returns when none is inside any more.
  virtual void run(const std::function<void(int)>& work) = 0;
};

// Threads that wait for work: they spin for a while, since the next step of a decode follows within microseconds, then sleep.
class Team final : public Crew {
 public:
  explicit Team(int threads) {
    try {
      for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { serve(i); });
    } catch (const std::system_error&) {  // the system gives no more threads: those that it gave do the work
    }
  }
  ~Team() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_.store(true);
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& t : threads_) t.join();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const override { return static_cast<int>(threads_.size()) + 1; }

  // On this thread, and on those that come in time.
  void run(const std::function<void(int)>& work) override {
    if (threads_.empty()) return work(0);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      work_ = &work;
      open_.store(true, std::memory_order_release);
      generation_.fetch_add(1, std::memory_order_release);
    }
    if (asleep_.load(std::memory_order_acquire) > 0) wake_.notify_all();
    work(0);
    open_.store(false, std::memory_order_seq_cst);
    for (int spins = 0; inside_.load(std::memory_order_seq_cst) > 0;) {
      pause_thread();
      if (++spins > 200) std::this_thread::yield(), spins = 0;
    }
  }

 private:
  void serve(int thread) {
    for (uint64_t seen = 0;;) {
      int spins = 0;
      while (generation_.load(std::memory_order_acquire) == seen && ++spins < kSpins) pause_thread();
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        asleep_.fetch_add(1, std::memory_order_acq_rel);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
        asleep_.fetch_sub(1, std::memory_order_acq_rel);
      }
      seen = generation_.load(std::memory_order_acquire);
      if (stop_.load()) return;
      inside_.fetch_add(1, std::memory_order_seq_cst);  // before asking: `run` closes, then waits for those inside
      if (open_.load(std::memory_order_seq_cst)) (*work_)(thread);
      inside_.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  static constexpr int kSpins = 20000;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> asleep_{0}, inside_{0};
  std::atomic<bool> open_{false};
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<bool> stop_{false};
};

}  // namespace edgeformer
