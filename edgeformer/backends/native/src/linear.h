// Products with tiles of 16 rows: M rows of activations at once, so that a tile is read once for all of them.
#pragma once
#include <algorithm>
#include <cstring>

#include "math.h"

namespace edgeformer {
namespace {

constexpr size_t kQ4Block = 288, kQ8Block = 544;  // codes of a group of 16 rows, then their scales

template <int M>
inline void tile_q4(const uint8_t* w, int64_t groups, const Rows& in, int64_t r0, F* y) {
  for (int j = 0; j < M; ++j) y[j] = zero();
  for (int64_t b = 0; b < groups; ++b, w += kQ4Block) {
    I acc[M], more = set1i(0);
    const int8_t* x[M];
    for (int j = 0; j < M; ++j) {
      acc[j] = set1i(-kQ4Zero * in.sums[(r0 + j) * in.group_stride + b]);
      x[j] = in.codes + (r0 + j) * in.code_stride + b * kGroup;
    }
    for (int g = 0; g < 4; ++g) {
      const B both = load_bytes(w + 64 * g), low = low4(both), high = high4(both);
      for (int j = 0; j < M; ++j) {
        acc[j] = dot_q4(acc[j], low, x[j] + 4 * g);
        if (M == 1)
          more = dot_q4(more, high, x[j] + 16 + 4 * g);  // two chains: one alone waits for its own latency
        else
          acc[j] = dot_q4(acc[j], high, x[j] + 16 + 4 * g);
      }
    }
    if (M == 1) acc[0] = addi(acc[0], more);
    const F scale = load_half(reinterpret_cast<const uint16_t*>(w + 256));
    for (int j = 0; j < M; ++j)
      y[j] = fma(to_float(acc[j]), mul(scale, set1(in.scales[(r0 + j) * in.group_stride + b])), y[j]);
  }
}

template <int M>
inline void tile_q8(const uint8_t* w, int64_t groups, const Rows& in, int64_t r0, F* y) {
  for (int j = 0; j < M; ++j) y[j] = zero();
  for (int64_t b = 0; b < groups; ++b, w += kQ8Block) {
    I acc[M], more = set1i(0);
    const int8_t* x[M];
    for (int j = 0; j < M; ++j) {
      acc[j] = set1i(-kQ8Zero * in.sums[(r0 + j) * in.group_stride + b]);
      x[j] = in.codes + (r0 + j) * in.code_stride + b * kGroup;
    }
    for (int g = 0; g < 8; ++g) {
      const B codes = load_bytes(w + 64 * g);
      for (int j = 0; j < M; ++j) {
        if (M == 1 && g % 2 == 1)
          more = dot_q8(more, codes, x[j] + 4 * g);
        else
          acc[j] = dot_q8(acc[j], codes, x[j] + 4 * g);
      }
    }
    if (M == 1) acc[0] = addi(acc[0], more);
    const F scale = load_half(reinterpret_cast<const uint16_t*>(w + 512));
    for (int j = 0; j < M; ++j)
      y[j] = fma(to_float(acc[j]), mul(scale, set1(in.scales[(r0 + j) * in.group_stride + b])), y[j]);
  }
}

// Input `k` of a group as 16 weights without their scales, from where its codes lie in a tile.
struct Bytes {
  static constexpr size_t kScales = 512, kBlock = kQ8Block;
  static F weights(const uint8_t* block, int k) { return signed_byte(block + k / 4 * 64, k % 4); }
};
struct Nibbles {
  static constexpr size_t kScales = 256, kBlock = kQ4Block;
  static F weights(const uint8_t* block, int k) {
    return signed_nibble(block + k % 16 / 4 * 64, 2 * (k % 4) + k / 16);
  }
};

// Codes times activations as they are.
template <int M, typename Codes>
inline void tile_exact(const uint8_t* w, int64_t groups, const Rows& in, int64_t r0, F* y) {
  for (int j = 0; j < M; ++j) y[j] = zero();
  const float* x = in.x + r0 * in.stride;
  for (int64_t b = 0; b < groups; ++b, w += Codes::kBlock, x += kGroup) {
    const F scale = load_half(reinterpret_cast<const uint16_t*>(w + Codes::kScales));
    if (M == 1) {  // scaled once per group; four chains: one alone waits for its own latency
      F acc[4] = {zero(), zero(), zero(), zero()};
      for (int k = 0; k < kGroup; k += 4)
        for (int c = 0; c < 4; ++c) acc[c] = fma(Codes::weights(w, k + c), set1(x[k + c]), acc[c]);
      y[0] = fma(add(add(acc[0], acc[1]), add(acc[2], acc[3])), scale, y[0]);
    } else {
      for (int k = 0; k < kGroup; ++k) {
        const F v = mul(Codes::weights(w, k), scale);
        for (int j = 0; j < M; ++j) y[j] = fma(v, set1(x[j * in.stride + k]), y[j]);
      }
    }
  }
}

inline F wide(const float* w) { return load(w); }
struct Half { uint16_t bits; };
struct Brain { uint16_t bits; };
inline F wide(const Half* w) { return load_half(&w->bits); }
inline F wide(const Brain* w) { return load_bf16(&w->bits); }

// N tiles (`next` elements apart) of floating-point weights.
template <int M, int N, typename W>
inline void tile_float(const W* w, int64_t next, int64_t cols, const Rows& in, int64_t r0, F* y) {
  F acc[M * N];
  for (int i = 0; i < M * N; ++i) acc[i] = zero();
  const float* x = in.x + r0 * in.stride;
  if (M * N == 1) {  // four chains: one alone waits for its own latency
    F b = zero(), c = zero(), d = zero();
    int64_t k = 0;
    for (; k + 4 <= cols; k += 4, w += 4 * kLanes) {
      acc[0] = fma(wide(w), set1(x[k]), acc[0]);
      b = fma(wide(w + kLanes), set1(x[k + 1]), b);
      c = fma(wide(w + 2 * kLanes), set1(x[k + 2]), c);
      d = fma(wide(w + 3 * kLanes), set1(x[k + 3]), d);
    }
    for (; k < cols; ++k, w += kLanes) acc[0] = fma(wide(w), set1(x[k]), acc[0]);
    y[0] = add(add(acc[0], b), add(c, d));
    return;
  }
  for (int64_t k = 0; k < cols; ++k, w += kLanes) {
    F v[N];
    for (int t = 0; t < N; ++t) v[t] = wide(w + t * next);
    for (int j = 0; j < M; ++j) {
      const F a = set1(x[j * in.stride + k]);
      for (int t = 0; t < N; ++t) acc[j * N + t] = fma(v[t], a, acc[j * N + t]);
    }
  }
  for (int t = 0; t < N; ++t)
    for (int j = 0; j < M; ++j) y[t * M + j] = acc[j * N + t];
}

// y[t * M + j]: tile t of N, row j of M.
template <int M, int N>
inline void tiles(const Matrix& m, int64_t tile, const Rows& in, int64_t r0, F* y) {
  const size_t bytes = tile_bytes(m.kind, m.cols);
  const uint8_t* w = m.tiles + static_cast<size_t>(tile) * bytes;
  const int64_t next = m.cols * kLanes;
  switch (m.kind) {
    case Kind::kF32: return tile_float<M, N>(reinterpret_cast<const float*>(w), next, m.cols, in, r0, y);
    case Kind::kF16: return tile_float<M, N>(reinterpret_cast<const Half*>(w), next, m.cols, in, r0, y);
    case Kind::kBF16: return tile_float<M, N>(reinterpret_cast<const Brain*>(w), next, m.cols, in, r0, y);
    case Kind::kQ8:
      for (int t = 0; t < N; ++t) tile_q8<M>(w + t * bytes, m.cols / kGroup, in, r0, y + t * M);
      return;
    case Kind::kQ4:
      for (int t = 0; t < N; ++t) tile_q4<M>(w + t * bytes, m.cols / kGroup, in, r0, y + t * M);
      return;
    case Kind::kQ8Exact:
      for (int t = 0; t < N; ++t) tile_exact<M, Bytes>(w + t * bytes, m.cols / kGroup, in, r0, y + t * M);
      return;
    case Kind::kQ4Exact:
      for (int t = 0; t < N; ++t) tile_exact<M, Nibbles>(w + t * bytes, m.cols / kGroup, in, r0, y + t * M);
      return;
  }
}

// Calls body(tile, row, M, N as constants) so that all tiles meet all rows; a tile's weights stay in the nearest cache meanwhile.
template <int N, typename Body>
inline void over_rows(int64_t tile, int64_t r0, int64_t r1, const Body& body) {
  int64_t r = r0;
  for (; r + kRowsAtOnce <= r1; r += kRowsAtOnce) body.template operator()<kRowsAtOnce, N>(tile, r);
  switch (r1 - r) {  // what is left, at once: a tile that isn't in the cache is read once
    case 7: return body.template operator()<std::min(7, kRowsAtOnce), N>(tile, r);
    case 6: return body.template operator()<std::min(6, kRowsAtOnce), N>(tile, r);
    case 5: return body.template operator()<std::min(5, kRowsAtOnce), N>(tile, r);
    case 4: return body.template operator()<std::min(4, kRowsAtOnce), N>(tile, r);
    case 3: return body.template operator()<3, N>(tile, r);
    case 2: return body.template operator()<2, N>(tile, r);
    case 1: return body.template operator()<1, N>(tile, r);
  }
}

// Products of many rows with weights that aren't floats: they become floats once for 64 rows, in blocks that stay in the nearest
// cache.
constexpr int64_t kManyRows = 16, kHeldRows = 64, kHeldCols = 256;

template <typename Codes>
inline void widen(const uint8_t* w, int64_t groups, float* to) {
  for (int64_t b = 0; b < groups; ++b, w += Codes::kBlock) {
    const F scale = load_half(reinterpret_cast<const uint16_t*>(w + Codes::kScales));
    for (int k = 0; k < kGroup; ++k, to += kLanes) store(to, mul(Codes::weights(w, k), scale));
  }
}

struct Accumulate {
  const float* weights;  // [tile][kHeldCols][16]
  int64_t cols, first;
  const Rows& in;
  float* sums;  // [row][tile][16]
  template <int M, int N>
  void operator()(int64_t, int64_t r) const {
    F y[M * N];
    if (kTilesAtOnce > 1)
      tile_float<M, N>(weights, kHeldCols * kLanes, cols, in, r, y);
    else
      for (int t = 0; t < N; ++t) tile_float<M, 1>(weights + t * kHeldCols * kLanes, 0, cols, in, r, y + t * M);
    for (int j = 0; j < M; ++j)
      for (int t = 0; t < N; ++t) {
        float* at = sums + ((r + j - first) * N + t) * kLanes;
        store(at, add(load(at), y[t * M + j]));
      }
  }
};

template <typename Body>
struct Finish {
  const Body& body;
  const float* sums;
  int64_t first;
  template <int M, int N>
  void operator()(int64_t tile, int64_t r) const {
    F y[M * N];
    for (int j = 0; j < M; ++j)
      for (int t = 0; t < N; ++t) y[t * M + j] = load(sums + ((r + j - first) * N + t) * kLanes);
    body.template finish<M, N>(tile, r, y);
  }
};

template <int N, typename Body>
inline void widened_rows(const Matrix& m, int64_t tile, const Rows& in, int64_t r0, int64_t r1, const Body& body) {
  float weights[N * kHeldCols * kLanes], sums[kHeldRows * N * kLanes];
  const size_t bytes = tile_bytes(m.kind, m.cols);
  for (int64_t r = r0; r < r1; r += kHeldRows) {
    const int64_t end = std::min(r + kHeldRows, r1);
    std::memset(sums, 0, sizeof(sums));
    for (int64_t k = 0; k < m.cols; k += kHeldCols) {
      const int64_t cols = std::min(kHeldCols, m.cols - k);
      for (int t = 0; t < N; ++t) {
        const uint8_t* w = m.tiles + static_cast<size_t>(tile + t) * bytes;
        float* to = weights + t * kHeldCols * kLanes;
        const int64_t skipped = k * kLanes;
        if (m.kind == Kind::kQ4Exact)
          widen<Nibbles>(w + static_cast<size_t>(k / kGroup) * kQ4Block, cols / kGroup, to);
        else if (m.kind == Kind::kQ8Exact)
          widen<Bytes>(w + static_cast<size_t>(k / kGroup) * kQ8Block, cols / kGroup, to);
        else
          for (int64_t n = skipped; n < skipped + cols * kLanes; n += kLanes, to += kLanes)
            store(to, m.kind == Kind::kF16 ? wide(reinterpret_cast<const Half*>(w) + n) : wide(reinterpret_cast<const Brain*>(w) + n));
      }
      Rows part = in;
      part.x += k;
      over_rows<N>(tile, r, end, Accumulate{weights, cols, r, part, sums});
    }
    over_rows<N>(tile, r, end, Finish<Body>{body, sums, r});
  }
}

struct LinearBody {
  const Matrix& m;
  const Rows& in;
  float* out;
  int64_t stride;
  const float* bias;
  Act act;
  template <int M, int N>
  void operator()(int64_t tile, int64_t r) const {
    F y[M * N];
    tiles<M, N>(m, tile, in, r, y);
    finish<M, N>(tile, r, y);
  }
  template <int M, int N>
  void finish(int64_t tile, int64_t r, const F* y) const {
    for (int t = 0; t < N; ++t) {
      const int64_t at = (tile + t) * kLanes;
      const int n = lanes_left(at, m.rows);
      for (int j = 0; j < M; ++j) {
        F v = y[t * M + j];
        if (bias != nullptr) v = add(v, load_some(bias + at, n));
        store_some(out + (r + j) * stride + at, activated(act, v), n);
      }
    }
  }
};

void linear(const Matrix& m, int64_t tile0, int64_t tile1, const Rows& in, int64_t r0, int64_t r1, float* out, int64_t stride,
            const float* bias, Act act) {
  const LinearBody body{m, in, out, stride, bias, act};
  int64_t t = tile0;
  if (widened(m.kind) && r1 - r0 >= kManyRows) {
    for (; t + kTilesAtOnce <= tile1; t += kTilesAtOnce) widened_rows<kTilesAtOnce>(m, t, in, r0, r1, body);
    for (; t < tile1; ++t) widened_rows<1>(m, t, in, r0, r1, body);
    return;
  }
  if (kTilesAtOnce > 1 && r1 - r0 > 1 && !grouped(m.kind))
    for (; t + kTilesAtOnce <= tile1; t += kTilesAtOnce) over_rows<kTilesAtOnce>(t, r0, r1, body);
  for (; t < tile1; ++t) over_rows<1>(t, r0, r1, body);
}

struct GluBody {
  const Matrix& m;
  const Rows& in;
  float* out;
  int64_t stride;
  const float *gate_bias, *up_bias;
  Act act;
  template <int M, int N>
  void operator()(int64_t tile, int64_t r) const {
    F y[2 * M];
    if (kTilesAtOnce > 1 && M > 1) {
      tiles<M, 2>(m, tile, in, r, y);
    } else {
      tiles<M, 1>(m, tile, in, r, y);
      tiles<M, 1>(m, tile + 1, in, r, y + M);
    }
    finish<M, 2>(tile, r, y);
  }
  template <int M, int N>
  void finish(int64_t tile, int64_t r, const F* y) const {
    const int64_t at = tile / 2 * kLanes;
    const int n = lanes_left(at, m.rows / 2);
    for (int j = 0; j < M; ++j) {
      F gate = y[j], up = y[M + j];
      if (gate_bias != nullptr) gate = add(gate, load_some(gate_bias + at, n)), up = add(up, load_some(up_bias + at, n));
      store_some(out + (r + j) * stride + at, mul(activated(act, gate), up), n);
    }
  }
};

void glu(const Matrix& m, int64_t pair0, int64_t pair1, const Rows& in, int64_t r0, int64_t r1, float* out, int64_t stride,
         const float* gate_bias, const float* up_bias, Act act) {
  const GluBody body{m, in, out, stride, gate_bias, up_bias, act};
  for (int64_t p = pair0; p < pair1; ++p) {
    if (widened(m.kind) && r1 - r0 >= kManyRows)
      widened_rows<2>(m, 2 * p, in, r0, r1, body);
    else
      over_rows<1>(2 * p, r0, r1, body);
  }
}

void row(const Matrix& m, int64_t index, float* out) {
  const uint8_t* w = m.tiles + static_cast<size_t>(index / kLanes) * tile_bytes(m.kind, m.cols);
  const int64_t lane = index % kLanes;
  for (int64_t k = 0; k < m.cols; ++k) {
    const int64_t at = k * kLanes + lane, in_group = k % kGroup;
    switch (m.kind) {
      case Kind::kF32: out[k] = reinterpret_cast<const float*>(w)[at]; break;
      case Kind::kF16: out[k] = from_half(reinterpret_cast<const uint16_t*>(w)[at]); break;
      case Kind::kBF16: out[k] = from_bf16(reinterpret_cast<const uint16_t*>(w)[at]); break;
      case Kind::kQ8:
      case Kind::kQ8Exact: {
        const uint8_t* block = w + k / kGroup * kQ8Block;
        const float scale = from_half(reinterpret_cast<const uint16_t*>(block + 512)[lane]);
        out[k] = scale * static_cast<float>(block[in_group / 4 * 64 + lane * 4 + in_group % 4] - 128);
        break;
      }
      case Kind::kQ4:
      case Kind::kQ4Exact: {
        const uint8_t* block = w + k / kGroup * kQ4Block;
        const float scale = from_half(reinterpret_cast<const uint16_t*>(block + 256)[lane]);
        const uint8_t both = block[in_group % 16 / 4 * 64 + lane * 4 + in_group % 4];
        out[k] = scale * static_cast<float>((in_group < 16 ? both & 15 : both >> 4) - 8);
        break;
      }
    }
  }
}

}  // namespace
}  // namespace edgeformer
