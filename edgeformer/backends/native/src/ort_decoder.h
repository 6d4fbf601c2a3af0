// edgeformer::Decoder(inputs..., weights...; program) -> logits [B, keep or T, V], keys and values of each layer [B, heads, S, dim]
//
// One forward pass of a whole decoder. The attribute `program` is what export/onnx/decoder.py writes: the instructions, and which
// input holds what. Caches lie as in the graph that the op stands for: `past` has room for all tokens (and may be the same memory
// as the output), or exactly for those before this step.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"
#include "ort_tensor.h"

namespace edgeformer {

// ONNX Runtime's threads. Each of them takes part at most once in a step; how many do is what earlier steps saw.
class PoolCrew final : public Crew {
 public:
  PoolCrew();
  int size() const override { return size_; }
  void run(const std::function<void(int)>& work) override;
  const Context* context = nullptr;  // of the step

 private:
  static constexpr size_t kMostThreads = 64;
  static constexpr int kStepsPerCount = 16;
  int size_, seen_ = 1, steps_ = 0;
};

class DecoderBase {
 public:
  DecoderBase(const Info& info, int cache_type);
  void compute(const Context& context);

 private:
  struct CacheIo {
    int32_t past_keys, past_values, keys, values;  // inputs, outputs
  };
  struct Rotation {
    int32_t vector, rotated;
    float magnitude;
    std::vector<float> frequencies;                    // one row, or some that the length of the sequence chooses from
    std::vector<std::pair<int32_t, int32_t>> changes;  // length, row from that length on
    bool per_length() const { return changes.size() > 1; }
  };
  class Reader;

  void read_matrices(Reader& in, const Info& info);
  void read_vectors(Reader& in, const Info& info);
  void charge(int64_t bytes);
  void cover(int64_t positions);
  void turn(const Rotation& r, int64_t first, int64_t end, int64_t length);

  const int cache_type_;
  int64_t budget_ = int64_t{1} << 20;  // bytes that may be made of weights
  std::unique_ptr<Model> model_;
  int32_t ids_ = 0, mask_ = 0, positions_ = -1, prefix_ = -1, keep_ = 0;
  std::vector<CacheIo> io_;
  std::vector<Rotation> rotations_;
  int64_t covered_ = 0;  // positions whose rotations are known
  int64_t limit_ = INT64_MAX;  // positions that learned tables cover
  PoolCrew crew_;
  std::unique_ptr<Executor> executor_;
  std::mutex mutex_;  // of a step
};

struct Decoder : DecoderBase {
  static constexpr const char* kName = "Decoder";
  static constexpr int kCacheType = ort::kFloat;
  explicit Decoder(const Info& info) : DecoderBase(info, kCacheType) {}
};

struct DecoderF16 : DecoderBase {
  static constexpr const char* kName = "DecoderF16";
  static constexpr int kCacheType = ort::kFloat16;
  explicit DecoderF16(const Info& info) : DecoderBase(info, kCacheType) {}
};

}  // namespace edgeformer
