// Encoders: whole texts at once, as rows of tokens without padding.
#pragma once
#include <mutex>
#include <vector>

#include "engine.h"

namespace edgeformer {

// Texts of different lengths, padded to one.
// ids, mask (0 where padded), types (or null) [texts, length]; outs: the arrays that kOut fills, [texts, length, width] where the
// instruction has a row per token, [texts, width] where it has one per text. Rows of padding, and texts without a token, get zeros.
struct Texts {
  const int64_t *ids, *mask, *types;
  int64_t count, length;
  float* const* outs;
};

class Encoder {
 public:
  // slots: whether positions count padding, too.
  Encoder(const Model& model, Crew& crew, bool slots);

  // positions: how many the model's tables cover.
  void run(const Texts& texts, int64_t positions);
  void profile(int64_t* nanoseconds) { executor_.profile(nanoseconds); }

 private:
  void add(const Texts& texts, int64_t text);
  void flush(const Texts& texts, int64_t positions);
  void clear();

  const Model& model_;
  const bool slots_;
  bool takes_first_ = false;  // so that the first slot has a row even if it is padding
  Executor executor_;
  Memory memory_;  // of keys and values
  size_t held_ = 0;
  std::vector<CacheView> caches_;
  // rows to be computed together
  std::vector<int64_t> ids_, places_, lengths_, text_places_;
  std::vector<int32_t> positions_, queries_, types_;
  std::vector<uint8_t> valid_;
  bool whole_ = true, in_order_ = true;  // no row is padding; each one's position is its place in its text
};

// An encoder with threads of its own.
class EncoderSession {
 public:
  EncoderSession(const Model& model, int64_t positions, bool slots, int threads);
  void run(const Texts& texts);
  void profile(int64_t* nanoseconds) { encoder_.profile(nanoseconds); }

 private:
  const int64_t positions_;
  std::mutex mutex_;  // of a run
  Team team_;
  Encoder encoder_;
};

}  // namespace edgeformer
