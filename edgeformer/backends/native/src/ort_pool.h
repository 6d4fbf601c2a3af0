// ONNX Runtime's threads as a crew.
#pragma once
#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>

#include "ort_tensor.h"
#include "team.h"

namespace edgeformer {

// Each thread takes part at most once in a step; how many do is what earlier steps saw.
class PoolCrew final : public Crew {
 public:
  int size() const override { return size_; }

  void run(const std::function<void(int)>& work) override {
    std::atomic<int> arrived{0};
    std::atomic<bool> over{false};
    context->parallel(kMostThreads, [&](size_t) {
      if (over.load(std::memory_order_acquire)) return;
      work(arrived.fetch_add(1));
      over.store(true, std::memory_order_release);  // a thread leaves when every phase is done
    });
    seen_ = std::max(seen_, arrived.load());
    if (++steps_ % kStepsPerCount == 0) {
      size_ = seen_;
      seen_ = 1;
    }
  }

  const Context* context = nullptr;  // of the step

 private:
  static constexpr size_t kMostThreads = 64;
  static constexpr int kStepsPerCount = 16;
  int size_ = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u)), seen_ = 1, steps_ = 0;
};

}  // namespace edgeformer
