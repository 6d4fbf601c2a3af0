// A model as a list of instructions over rows of activations, and what runs them. `program.py` writes the instructions.
#pragma once
#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "team.h"

namespace edgeformer {

enum class Op : int32_t {
  kEmbed,    // dst = rows of `matrix` by token id, times `scale`
  kLookup,   // dst = rows of `matrix` by position + `count`
  kAdd,      // dst = src + other, or src + `weight`, or src + `scale`
  kMul,      // dst = src * other, or src * `weight`, or src * `scale`
  kClamp,    // dst = src within +-`scale`
  kAct,      // dst = act(src)
  kNorm,     // dst = norm(src (+ other)) for `count` segments of `width`; the sum is written over `total`, if given
  kLinear,   // dst = act(matrix . src + bias)
  kGlu,      // dst = act(gate . src + weight) * (up . src + bias), gate and up being `matrix`'s even and odd tiles
  kAppend,   // rotates `count` query heads in src and `heads` key heads in other, caches keys, and values in `total`
  kAttend,   // dst = attention of src to the cache
  kLast,     // dst = the last positions of src that are kept
  kRotate,   // dst = src's `count` heads, rotated
  kSoftmax,  // dst = softmax(src)
  kTopK,     // dst = the `count` largest of src, in descending order, and total = their indices, as floats
  kSum,      // dst[0] = the sum of src
  kDivide,   // dst = src / other[0]
  kMoe,      // dst = sum over the `count` experts in `total` of other's weight times down(act(gate . src) * up . src)
};

// One instruction; `program.py` mirrors it. Buffers are numbers, -1 for none; *_at are the first columns.
struct Instruction {
  Op op;
  int32_t dst, src, other, total;
  int32_t dst_at, src_at, other_at, total_at;
  int32_t width, count, heads, dim, value_dim;
  int32_t matrix, weight, bias;  // kMoe: `matrix` and `bias` are the first experts' gates and ups, and downs
  int32_t act, norm;
  int32_t cache, table, rotated, interleaved;
  int32_t causal, window, chunk, prefix, slopes, sinks;
  int32_t middle;  // kMoe: a buffer for the experts' hidden rows
  int32_t quantize, kept;
  float eps, scale, softcap;
};

struct CacheShape {
  int32_t heads, dim, value_dim;
};

inline int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

class Model {
 public:
  Model(const Kernels* kernels, int32_t vocab) : kernels(kernels), vocab(vocab) {}

  // Sets the instructions, after all matrices and vectors were added; throws if one of them refers to what isn't there.
  void set_program(std::vector<int32_t> buffer_widths, std::vector<Instruction> instructions, std::vector<CacheShape> shapes);
  int add_matrix(Kind kind, int64_t rows, int64_t cols, int64_t tile_count);
  // Rows [row, row + count) of the part that starts at tile `tile` and takes every `step`-th one. fp32, fp16 and bf16 data are
  // [count, cols]; codes [count, cols * bits / 8] come with fp16 scales [count, cols / 32].
  void fill(int matrix, int64_t tile, int64_t step, int64_t row, int64_t count, const void* data, const uint16_t* scales);
  int add_vector(const float* data, int64_t count);
  void set_vector(int vector, int64_t start, const float* data, int64_t count);

  const Kernels* kernels;
  int32_t vocab;
  std::vector<int32_t> widths;
  std::vector<Instruction> program;
  std::vector<CacheShape> caches;
  std::vector<Matrix> matrices;
  std::vector<std::vector<float>> vectors;

 private:
  std::vector<Memory> memory_;
  uint8_t* arena_ = nullptr;
  size_t arena_left_ = 0;
};

// Where the keys and values of one layer lie; of each sequence and head, `capacity` slots.
struct CacheView {
  uint8_t *keys, *values;
  const uint8_t *past_keys = nullptr, *past_values = nullptr;  // elsewhere: what earlier steps left, to be copied first
};

// How all caches of a step lie.
struct CacheLayout {
  CacheKind kind;
  bool tiled;                         // keys as [capacity / 16][dim][16] and values in whole vectors, or both as [capacity][dim]
  int64_t capacity, past_capacity = 0;  // slots per head, here and in the past's arrays
};

// One forward pass of `count` new tokens per sequence, after `start` others.
// ids, positions, query_positions [batch, count]: a query position is where masks count it, a position where tables do;
// key_positions, valid [batch, start + count] or null; prefix [batch] or null; out [batch, keep or count, vocab].
struct Inputs {
  const int64_t* ids;
  const int32_t *positions, *query_positions, *key_positions;
  const uint8_t* valid;
  const int32_t* prefix;
  int64_t start, count, keep;
  float* out;
};

// Runs a model's instructions on a crew of threads, with caches of the caller's.
class Executor {
 public:
  Executor(const Model& model, Crew& crew) : model_(model), crew_(crew) {}

  // positions: how many the model's tables cover.
  void step(const Inputs& inputs, int64_t batch, int64_t positions, const CacheView* caches, const CacheLayout& layout);

  // Adds the time of each instruction to `nanoseconds`, one number per instruction; null stops.
  void profile(int64_t* nanoseconds) { profile_ = nanoseconds; }

 private:
  struct Buffer {
    float* x;
    int8_t* codes;
    float* scales;
    int32_t* sums;
    int64_t width, groups;
  };
  // How an attention is cut into chunks: `splits` ranges of keys, and blocks of rows.
  struct Cut {
    int64_t splits, keys_per_split, row_block, blocks;
    bool whole;  // a chunk makes whole results, so that no phase has to join splits
  };

  void reserve(int64_t rows);
  void work(int thread);
  template <typename Body>
  void phase(uint32_t& number, int64_t chunks, const Body& body);
  template <typename Body>
  void by_rows(uint32_t& number, int64_t rows, const Body& body);
  void product(const Instruction& i, uint32_t& number);
  void row(const Instruction& i, int64_t row);
  void experts(const Instruction& i, uint32_t& number);
  void copy_past(int64_t head);
  void append(const Instruction& i, int64_t block);
  void attend(const Instruction& i, const Cut& cut, int64_t chunk);
  void merge(const Instruction& i, const Cut& cut, int64_t row, int64_t first, int64_t heads);
  Cut cut(const Instruction& i) const;
  Rows rows_of(int32_t buffer, int32_t at) const;
  // Floats from one cached value to the next.
  int64_t value_stride(int32_t cache) const {
    const int64_t dim = model_.caches[static_cast<size_t>(cache)].value_dim;
    return layout_.tiled ? whole_vectors(dim) : dim;
  }
  // A row of a buffer from a column on; buffer -1 is the caller's array of logits.
  float* at(int32_t buffer, int32_t column, int64_t row) const {
    if (buffer < 0) return in_.out + row * model_.vocab + column;
    const Buffer& b = buffers_[static_cast<size_t>(buffer)];
    return b.x + row * b.width + column;
  }
  const float* vector(int32_t index) const {
    return index < 0 ? nullptr : model_.vectors[static_cast<size_t>(index)].data();
  }
  void quantize(const Instruction& i, int64_t row, int64_t column, int64_t count) const;

  const Model& model_;
  Crew& crew_;
  std::vector<Buffer> buffers_;
  Memory activations_;
  int64_t rows_held_ = 0;
  size_t partials_held_ = 0;
  uint32_t first_phase_ = 0;
  int64_t* profile_ = nullptr;
  // of the step
  Inputs in_{};
  const CacheView* caches_ = nullptr;
  CacheLayout layout_{};
  int threads_ = 1;
  int64_t batch_ = 0, rows_ = 0, kept_ = 0;
  Memory partial_;  // of attentions: sums of values, then largest scores and totals
  float *outputs_ = nullptr, *maxima_ = nullptr, *totals_ = nullptr;
  Phases phases_;
};

// Sequences with caches and threads of their own.
class Session {
 public:
  // capacity: tokens per sequence; positions must be below it, too.
  Session(const Model& model, int64_t batch, int64_t capacity, int threads, CacheKind cache);
  void step(const Inputs& inputs);
  void profile(int64_t* nanoseconds) { executor_.profile(nanoseconds); }

 private:
  const int64_t batch_, capacity_;
  CacheLayout layout_;
  Memory memory_;
  std::vector<CacheView> caches_;
  std::mutex mutex_;  // of a step: two at once would write to the same rows
  Team team_;
  Executor executor_;
};

template <typename Body>
void Executor::phase(uint32_t& number, int64_t chunks, const Body& body) {
  if (chunks > 0) phases_.run(number++, static_cast<uint32_t>(chunks), body);
}

template <typename Body>
void Executor::by_rows(uint32_t& number, int64_t rows, const Body& body) {
  const int64_t size = std::max<int64_t>(rows / (4 * threads_), 1);
  phase(number, (rows + size - 1) / size, [&](uint32_t chunk) {
    for (int64_t r = chunk * size; r < std::min(rows, (chunk + 1) * size); ++r) body(r);
  });
}

}  // namespace edgeformer
