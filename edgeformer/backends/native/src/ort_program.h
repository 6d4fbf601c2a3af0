// A model that an ONNX node holds: its attribute `program`, which export/onnx/one_node.py writes, says what to compute, and which
// inputs hold the weights.
#pragma once
#include <memory>
#include <utility>
#include <vector>

#include "engine.h"
#include "ort_tensor.h"

namespace edgeformer {

class OrtProgram {
 public:
  struct CacheIo {
    int32_t past_keys, past_values, keys, values;  // inputs, outputs; -1: none
  };
  // Numbers of the node's inputs and outputs; -1: none.
  struct Io {
    int32_t ids, mask, positions, prefix, keep, types;
    bool slots;  // positions count padding, too
    std::vector<CacheIo> caches;
    std::vector<int32_t> outs;  // of kOut
  };

  explicit OrtProgram(const Info& info);

  const Model& model() const { return *model_; }
  const Io& io() const { return io_; }
  int64_t limit() const { return limit_; }      // positions that learned tables cover
  int64_t covered() const { return covered_; }  // positions whose rotations are known

  // Computes the rotations of at least so many positions, but for those that depend on the length.
  void cover(int64_t positions);
  // Computes the rotations that depend on the length: of these positions, in a sequence of so many tokens.
  void cover_in(int64_t length, const std::vector<int32_t>& positions);

 private:
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
  void turn(const Rotation& r, int64_t first, int64_t end, int64_t length);

  int64_t budget_ = int64_t{1} << 20;  // bytes that may be made of weights
  std::unique_ptr<Model> model_;
  Io io_{};
  std::vector<Rotation> rotations_;
  int64_t covered_ = 0;
  int64_t limit_ = INT64_MAX;
};

// An int64 input of a rank.
Tensor integers(const Context& context, int32_t index, const char* name, size_t rank);

}  // namespace edgeformer
