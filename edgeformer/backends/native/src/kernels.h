// What the engine asks of an instruction set: a table of functions, one per file isa_*.cc, all compiled from the same headers.
//
// Weights lie in tiles of 16 output rows, interleaved so that the rows are the lanes of a vector: a product reads one
// sequential stream and needs no horizontal sums. A tile holds, per input (fp32, fp16, bf16) 16 numbers; per group of 32
// inputs (q8, q4) 16 x 32 codes, four inputs of each row together, then 16 fp16 scales.
#pragma once
#include <cstddef>
#include <cstdint>

namespace edgeformer {

constexpr int kLanes = 16;   // rows of a tile, and floats of a vector
constexpr int kGroup = 32;   // inputs per scale

// kQ8 and kQ4 are multiplied by activations rounded to int8, the exact kinds by activations as they are.
enum class Kind : int32_t { kF32, kF16, kBF16, kQ8, kQ4, kQ8Exact, kQ4Exact };
enum class Act : int32_t { kNone, kSilu, kGelu, kGeluTanh, kQuickGelu, kRelu, kRelu2, kSigmoid, kTanh };
enum class NormKind : int32_t { kRms, kLayer };
enum class CacheKind : int32_t { kF32, kF16, kI8 };

// Bytes of a number in a cache.
inline size_t bytes_of(CacheKind kind) { return kind == CacheKind::kF32 ? 4 : kind == CacheKind::kF16 ? 2 : 1; }

// Whether activations are rounded to int8.
inline bool rounds(Kind kind) { return kind == Kind::kQ8 || kind == Kind::kQ4; }
// Whether weights are multiplied as floats that they first have to become.
inline bool widened(Kind kind) { return kind != Kind::kF32 && !rounds(kind); }
// Whether weights are codes in groups of 32.
inline bool grouped(Kind kind) { return kind >= Kind::kQ8; }

// Bytes of a tile with `cols` inputs.
inline size_t tile_bytes(Kind kind, int64_t cols) {
  switch (kind) {
    case Kind::kF32: return static_cast<size_t>(cols) * 64;
    case Kind::kF16:
    case Kind::kBF16: return static_cast<size_t>(cols) * 32;
    case Kind::kQ8:
    case Kind::kQ8Exact: return static_cast<size_t>(cols / kGroup) * (512 + 32);
    case Kind::kQ4:
    case Kind::kQ4Exact: return static_cast<size_t>(cols / kGroup) * (256 + 32);
  }
  return 0;
}

struct Matrix {
  Kind kind;
  int64_t rows, cols;
  int64_t tile_count;  // of gates and ups, each of which ends with a tile of its own, more than rows / 16
  const uint8_t* tiles;
};

// Rows of activations: fp32, and, where a quantized matrix reads them, int8 codes in groups of 32 with a scale and a sum each.
struct Rows {
  const float* x;
  int64_t stride;  // floats from one row to the next
  const int8_t* codes;
  const float* scales;
  const int32_t* sums;
  int64_t code_stride, group_stride;  // codes, and groups, from one row to the next
};

// Where quantized activations are written.
struct Codes {
  int8_t* codes;
  float* scales;
  int32_t* sums;
};

// Attention of some query heads that share one head of keys and values, for some rows, over the keys [first, end).
struct Attention {
  const float* q;  // [rows, ...] this group's first head
  int64_t q_stride;
  int rows, heads, dim, value_dim;
  const void *keys, *values;  // this group's: [capacity][value_stride], and [capacity / 16][dim][16] if tiled, else [capacity][dim]
  bool latent;                // a key is its value, then `dim - value_dim` channels of its own, which alone lie in `keys`
  CacheKind cache;
  bool tiled;
  int64_t value_stride;
  int64_t first, end;
  float scale, softcap;        // softcap 0: none
  const float* slopes;         // ALiBi, one per head, or null
  int32_t furthest;            // if > 0: slopes [heads, 2 furthest + 1] are biases by the distance key - query instead
  const int32_t* query_positions;  // per row
  const int32_t* key_positions;    // per key, or null: the key's own index
  const uint8_t* valid;            // per key, or null: all are
  bool causal;
  int32_t window, chunk, prefix;  // 0: none
  float *maxima, *totals, *outputs;  // per row and head: its largest score, the sum of exponentials, weighted sums
  int64_t out_stride;                // (row, head) pairs are `split_stride` apart within a row of `row_stride` pairs
  int64_t row_stride;
  float* scratch;  // kScratch floats
};

// One head's result: the splits of its keys joined, with the sink, if it has one.
struct Join {
  const float *maxima, *totals, *outputs;
  int64_t splits, split_stride, out_stride;  // from one split to the next: pairs; and floats of a pair's sums
  int value_dim;
  const float* sink;
  float* y;
};
constexpr int kKeyBlock = 128;  // keys whose scores are held at once
constexpr int kPairs = 32;      // (row, head) pairs at once
constexpr int kMaxDim = 640;    // channels of keys that aren't in tiles
constexpr int64_t kScratch = static_cast<int64_t>(kPairs) * kKeyBlock + kMaxDim * kLanes;

struct Kernels {
  const char* name;
  bool (*available)();
  // out[r][i] = act(matrix row i . in row r + bias[i]) for tiles [tile0, tile1) and rows [r0, r1).
  void (*linear)(const Matrix&, int64_t tile0, int64_t tile1, const Rows& in, int64_t r0, int64_t r1, float* out,
                 int64_t out_stride, const float* bias, Act act);
  // Tiles 2i are gates, tiles 2i + 1 ups: out[r][i] = act(gate) * up, for pairs of tiles [pair0, pair1).
  void (*glu)(const Matrix&, int64_t pair0, int64_t pair1, const Rows& in, int64_t r0, int64_t r1, float* out,
              int64_t out_stride, const float* gate_bias, const float* up_bias, Act act);
  // A row that holds NaN or infinity makes a product NaN, as it would in floating point.
  void (*quantize)(const float* x, int64_t count, const Codes& to);
  // total = x + d (d may be null; total too), y = norm(total) * weight + bias (which may be null).
  void (*norm)(NormKind kind, const float* x, const float* d, float* total, float* y, int64_t count, const float* weight,
               const float* bias, float eps);
  void (*activate)(Act act, float* x, int64_t count);
  void (*attend)(const Attention&);
  void (*join)(const Join&);
  void (*to_halves)(const float* x, uint16_t* y, int64_t count);
  // Row `row` of a matrix as floats.
  void (*row)(const Matrix&, int64_t row, float* out);
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* neon_kernels();

// The fastest set that this processor has, or the one named; null if it has none of that name.
const Kernels* choose_kernels(const char* name);

// The set that the environment variable EDGEFORMER_ISA names, or the fastest; throws if this processor doesn't have it.
const Kernels* kernels_here();

}  // namespace edgeformer
