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
  kHeads,    // dst = src's `count` heads of `dim` channels, rotated, if there is a `table`
  kSoftmax,  // dst = softmax(src)
  kTopK,     // dst = the `count` largest of src, in descending order, and total = their indices, as floats
  kSum,      // dst[0] = the sum of src
  kDivide,   // dst = src / other[0]
  kMoe,      // dst = sum over the `count` experts in `total` of other's weight times down(act(gate . src) * up . src)
  kMaps,     // dst's head h = `matrix` + h times src's head h, for `heads` heads
  kGroups,   // dst = src in the `count` of its `heads` groups that have the largest numbers, 0 in the others
  kTypes,    // dst = rows of `matrix` by token type
  kPool,     // dst = the first row of src's sequences (`count` 0) or their mean (`count` 1), one row each
  kOut,      // the caller's array `count` = src
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
  int32_t src_step, dst_step;  // kHeads, kMaps: columns from one head to the next
  int32_t furthest;  // kAttend: if > 0, `slopes` holds a bias per head and distance key - query in [-furthest, furthest]
  float eps, scale, softcap;
};

// Keys and values of a layer. latent: a key's first `value_dim` channels are its value, and only the others are kept as keys.
struct CacheShape {
  int32_t heads, dim, value_dim, latent = 0;
  int32_t key_scales = -1, value_scales = -1;  // vectors: of a cache of codes, one per head and channel
  int32_t key_dim() const { return latent != 0 ? dim - value_dim : dim; }
};

// What a kOut instruction fills: rows of so many floats, one per text (`kept`) or token.
struct Out {
  int32_t width = 0;
  bool kept = false;
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
  std::vector<Out> outs;
  bool has_codes = false;  // whether its caches have scales
  int32_t types = 0;  // token types that all tables have
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

// One forward pass of `count` new tokens per sequence, after `start` others; or, with `lengths`, of whole sequences of different
// lengths, of which `count` is the largest: their rows follow each other without padding.
// ids, positions, query_positions [batch, count]: a query position is where masks count it, a position where tables do;
// key_positions, valid [batch, start + count], with `lengths` [rows], or null; prefix [batch] or null; out [batch, keep or count, vocab].
// types [rows]; outs: the arrays that kOut fills; places [rows], text_places [batch]: each token's and sequence's row there.
struct Inputs {
  const int64_t* ids;
  const int32_t *positions, *query_positions, *key_positions;
  const uint8_t* valid;
  const int32_t* prefix;
  int64_t start, count, keep;
  float* out;
  const int64_t* lengths = nullptr;
  const int32_t* types = nullptr;
  float* const* outs = nullptr;
  const int64_t *places = nullptr, *text_places = nullptr;
};

// Rotates `heads` heads in place by a position's cosines and sines.
void rotate(const Instruction& i, const float* angles, float* x, int32_t heads);

// Rows whose (row, head) pairs share keys and values, with `group` query heads per key head.
inline int64_t rows_per_block(int64_t group) { return std::max<int64_t>(kPairs / group, 1); }

// Runs a model's instructions on a crew of threads, with caches of the caller's.
class Executor {
 public:
  Executor(const Model& model, Crew& crew);

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
  // Of a step: its first row and its rows; its first slot in the caches, and its slots per head.
  struct Sequence {
    int64_t row, count, slot, capacity;
  };
  // Rows of one sequence, from `first` on.
  struct Block {
    int64_t sequence, first;
  };
  // The blocks of rows of all attentions with so many query heads per key head.
  struct Blocks {
    int64_t group;
    std::vector<Block> list;
  };
  // How an attention is cut into chunks: `splits` ranges of keys, and blocks of rows.
  struct Cut {
    int64_t splits, keys_per_split, row_block;
    const std::vector<Block>* blocks;
    bool whole;  // a chunk makes whole results, so that no phase has to join splits
  };

  void arrange();
  void reserve(int64_t rows);
  void work(int thread);
  template <typename Body>
  void phase(uint32_t& number, int64_t chunks, const Body& body);
  template <typename Body>
  void by_rows(uint32_t& number, int64_t rows, const Body& body);
  void product(const Instruction& i, uint32_t& number);
  void maps(const Instruction& i, uint32_t& number);
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
  std::vector<Sequence> sequences_;
  std::vector<int32_t> sequence_of_;  // each row
  std::vector<Blocks> blocks_;
  const CacheView* caches_ = nullptr;
  CacheLayout layout_{};
  int threads_ = 1;
  int64_t batch_ = 0, rows_ = 0, kept_ = 0;
  Memory partial_;  // of attentions: sums of values, then largest scores and totals
  float *outputs_ = nullptr, *maxima_ = nullptr, *totals_ = nullptr;
  Phases phases_;
};

// Throws unless the model's tables cover so many positions.
void check_tables(const Model& model, int64_t positions);

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
