// edgeformer::Decoder(inputs..., weights...; program) -> logits [B, keep or T, V], keys and values of each layer [B, heads, S, dim]
//
// One forward pass of a whole decoder. The attribute `program` is what export/onnx/one_node.py writes: the instructions, and which
// input holds what. Caches lie as in the graph that the op stands for: `past` has room for all tokens (and may be the same memory
// as the output), or exactly for those before this step.
#pragma once
#include <mutex>

#include "ort_pool.h"
#include "ort_program.h"

namespace edgeformer {

class DecoderBase {
 public:
  DecoderBase(const Info& info, int cache_type);
  void compute(const Context& context);

 private:
  const int cache_type_;
  OrtProgram program_;
  PoolCrew crew_;
  Executor executor_;
  std::mutex mutex_;  // of a step
};

struct Decoder : DecoderBase {
  static constexpr const char* kName = "Decoder";
  static constexpr int kCacheType = ort::kFloat;
  explicit Decoder(const Info& info) : DecoderBase(info, kCacheType) {}
};

// The cache holds codes, in scales that the program knows.
struct DecoderI8 : DecoderBase {
  static constexpr const char* kName = "DecoderI8";
  static constexpr int kCacheType = ort::kInt8;
  explicit DecoderI8(const Info& info) : DecoderBase(info, kCacheType) {}
};

struct DecoderF16 : DecoderBase {
  static constexpr const char* kName = "DecoderF16";
  static constexpr int kCacheType = ort::kFloat16;
  explicit DecoderF16(const Info& info) : DecoderBase(info, kCacheType) {}
};

}  // namespace edgeformer
