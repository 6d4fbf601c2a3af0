// Attention with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022), for (row, head) pairs that share keys and values.
//
// Keys lie in tiles [dim][16], so that 16 keys are the lanes of a score; values in rows, so that channels are the lanes. Keys that
// lie in rows, as ONNX has them, are put into a tile first.
#pragma once
#include <algorithm>

#include "math.h"

namespace edgeformer {
namespace {

constexpr float kMasked = -1e30f;
constexpr int kFewPairs = 6;

inline F element(const float* p) { return load(p); }
inline F element(const uint16_t* p) { return load_half(p); }
inline F element(const int8_t* p) {
  float t[kLanes];
  for (int i = 0; i < kLanes; ++i) t[i] = p[i];
  return load(t);
}

// scores[p][0..15] = q[p] . keys of one tile, for M pairs.
template <int M, typename E>
inline void scores_of_tile(const E* tile, int dim, const float* const* q, float* const* scores) {
  constexpr int kChains = M <= 2 ? 4 : M <= 4 ? 2 : 1;  // few sums alone would wait for their own latency
  F acc[kChains * M];
  for (F& a : acc) a = zero();
  int d = 0;
  for (; d + kChains <= dim; d += kChains)
    for (int c = 0; c < kChains; ++c, tile += kLanes) {
      const F k = element(tile);
      for (int p = 0; p < M; ++p) acc[c * M + p] = fma(k, set1(q[p][d + c]), acc[c * M + p]);
    }
  for (; d < dim; ++d, tile += kLanes) {
    const F k = element(tile);
    for (int p = 0; p < M; ++p) acc[p] = fma(k, set1(q[p][d]), acc[p]);
  }
  for (int p = 0; p < M; ++p) {
    for (int c = 1; c < kChains; ++c) acc[p] = add(acc[p], acc[c * M + p]);
    store(scores[p], acc[p]);
  }
}

template <typename E>
inline void scores(const E* tile, int dim, int count, const float* const* q, float* const* at) {
  int p = 0;
  for (; p + kRowsAtOnce <= count; p += kRowsAtOnce) scores_of_tile<kRowsAtOnce>(tile, dim, q + p, at + p);
  for (; p + 3 <= count; p += 3) scores_of_tile<3>(tile, dim, q + p, at + p);
  for (; p < count; ++p) scores_of_tile<1>(tile, dim, q + p, at + p);
}

// out[p][0 .. 16 N) += sum over keys of weight[p][key] * values[key], for M pairs.
template <int M, int N, typename E>
inline void add_values(const E* values, int64_t width, int keys, const float* const* weights, float* const* out) {
  F acc[M * N];
  for (int p = 0; p < M; ++p)
    for (int n = 0; n < N; ++n) acc[p * N + n] = load(out[p] + n * kLanes);
  for (int k = 0; k < keys; ++k, values += width) {
    F v[N];
    for (int n = 0; n < N; ++n) v[n] = element(values + n * kLanes);
    for (int p = 0; p < M; ++p) {
      const F w = set1(weights[p][k]);
      for (int n = 0; n < N; ++n) acc[p * N + n] = fma(v[n], w, acc[p * N + n]);
    }
  }
  for (int p = 0; p < M; ++p)
    for (int n = 0; n < N; ++n) store(out[p] + n * kLanes, acc[p * N + n]);
}

inline F element_some(const float* p, int count) { return load_some(p, count); }
inline F element_some(const uint16_t* p, int count) {
  if (count >= kLanes) return load_half(p);
  float t[kLanes] = {};
  for (int i = 0; i < count; ++i) t[i] = from_half(p[i]);
  return load(t);
}

inline F element_some(const int8_t* p, int count) {
  float t[kLanes] = {};
  for (int i = 0; i < std::min(count, kLanes); ++i) t[i] = p[i];
  return load(t);
}

// Rows [count][dim] of up to 16 keys as a tile.
template <typename E>
inline void into_tile(const E* rows, int count, int dim, float* tile) {
  for (int d = 0; d < dim; d += kLanes) {
    const int n = lanes_left(d, dim);
    F block[kLanes];
    for (int r = 0; r < kLanes; ++r) block[r] = r < count ? element_some(rows + static_cast<int64_t>(r) * dim + d, n) : zero();
    transpose(block);
    for (int c = 0; c < n; ++c) store(tile + (d + c) * kLanes, block[c]);
  }
}

// scores[p][0..15] = q[p] . each of 16 keys in rows, for M pairs; `kVectors` vectors per key, or as many as it takes if that is 0.
template <int M, int kVectors, typename E>
inline void scores_of_rows(const E* rows, int dim, const float* const* q, float* const* scores) {
  const int vectors = kVectors > 0 ? kVectors : dim / kLanes;
  F products[M][kLanes];
  for (int r = 0; r < kLanes; ++r, rows += dim) {
    F acc[M];
    for (F& x : acc) x = zero();
    for (int d = 0; d < vectors; ++d) {
      const F k = element(rows + d * kLanes);
      for (int p = 0; p < M; ++p) acc[p] = fma(k, load(q[p] + d * kLanes), acc[p]);
    }
    for (int p = 0; p < M; ++p) products[p][r] = acc[p];
  }
  for (int p = 0; p < M; ++p) store(scores[p], sums(products[p]));
}

// The same, with the usual numbers of channels as constants.
template <int M, typename E>
inline void scores_of_rows(const E* rows, int dim, const float* const* q, float* const* scores) {
  if (dim == 64) return scores_of_rows<M, 4>(rows, dim, q, scores);
  if (dim == 128) return scores_of_rows<M, 8>(rows, dim, q, scores);
  scores_of_rows<M, 0>(rows, dim, q, scores);
}

// Scores of 16 keys in rows: few pairs multiply the rows as they are, for many these are worth a tile.
template <typename E>
inline void scores_of_rows(const E* rows, int keys, int dim, int count, const float* const* q, float* const* at, float* tile) {
  if (keys < kLanes || dim % kLanes != 0 || count > kFewPairs) {
    into_tile(rows, std::min(keys, kLanes), dim, tile);
    return scores(tile, dim, count, q, at);
  }
  int p = 0;
  for (; p + 3 <= count; p += 3) scores_of_rows<3>(rows, dim, q + p, at + p);
  for (; p < count; ++p) scores_of_rows<1>(rows, dim, q + p, at + p);
}

// Keys that begin with their values: those, and the channels of their own, as one tile.
template <typename E>
inline void latent_tile(const Attention& a, const E* keys, const E* values, int count, float* tile) {
  const int own = a.dim - a.value_dim;
  for (int d = 0; d < a.value_dim; d += kLanes) {
    const int n = lanes_left(d, a.value_dim);
    F block[kLanes];
    for (int r = 0; r < kLanes; ++r) block[r] = r < count ? element_some(values + r * a.value_stride + d, n) : zero();
    transpose(block);
    for (int c = 0; c < n; ++c) store(tile + (d + c) * kLanes, block[c]);
  }
  tile += a.value_dim * kLanes;
  if (!a.tiled) return into_tile(keys, count, own, tile);
  for (int d = 0; d < own; ++d) store(tile + d * kLanes, element(keys + d * kLanes));
}

struct Pair {
  const float* q;
  float* out;
  float *largest, *total;
  int32_t position;
  float slope;
  const float* biases;  // by distance, or null
};

inline bool visible(const Attention& a, int64_t key, int32_t position) {
  if (a.valid != nullptr && a.valid[key] == 0) return false;
  const int32_t k = a.key_positions != nullptr ? a.key_positions[key] : static_cast<int32_t>(key);
  if (k < a.prefix) return true;
  if (a.causal && k > position) return false;
  if (a.window > 0 && (position - k >= a.window || (!a.causal && k - position >= a.window))) return false;
  if (a.chunk > 0 && k / a.chunk != position / a.chunk) return false;
  return true;
}

// Whether every key in [first, end) is visible from `position`, judged cheaply: false means that each has to be asked.
inline bool all_visible(const Attention& a, int64_t first, int64_t end, int32_t position) {
  if (a.valid != nullptr || a.key_positions != nullptr || a.chunk > 0) return false;
  if (a.causal ? end - 1 > position : a.window > 0 && end - 1 - position >= a.window) return false;
  return a.window == 0 || position - first < a.window;
}

// Scales, caps, biases and masks one pair's scores, and turns them into weights; adjusts the pair's running sums.
inline void soften(const Attention& a, const Pair& pair, int64_t first, int count, float* scores) {
  const int padded = (count + kLanes - 1) / kLanes * kLanes;
  F top = set1(kMasked);
  for (int i = 0; i < padded; i += kLanes) {
    F s = mul(load(scores + i), set1(a.scale));
    if (a.softcap > 0) s = mul(tanh(mul(s, set1(1.0f / a.softcap))), set1(a.softcap));
    const int64_t key = first + i, end = key + kLanes < first + count ? key + kLanes : first + count;
    const bool whole = end == key + kLanes && all_visible(a, key, end, pair.position);
    if (!whole || pair.slope != 0 || pair.biases != nullptr) {
      float t[kLanes];
      store(t, s);
      for (int j = 0; j < kLanes; ++j) {
        if (key + j >= end || !visible(a, key + j, pair.position)) {
          t[j] = kMasked;
        } else if (pair.slope != 0 || pair.biases != nullptr) {
          const int32_t k = a.key_positions != nullptr ? a.key_positions[key + j] : static_cast<int32_t>(key + j);
          const int32_t distance = k - pair.position;
          t[j] += pair.biases != nullptr ? pair.biases[std::min(std::max(distance, -a.furthest), a.furthest) + a.furthest]
                                         : pair.slope * static_cast<float>(distance);
        }
      }
      s = load(t);
    }
    store(scores + i, s);
    top = max(top, s);
  }
  const float old = *pair.largest, now = largest(top) > old ? largest(top) : old;
  F sums = zero();
  for (int i = 0; i < padded; i += kLanes) {
    const F e = exp(sub(load(scores + i), set1(now)));
    // e ** -87 is the least that exp returns, and lanes beyond `count` must not count at all
    const int n = count - i;
    F kept = e;
    if (n < kLanes) {
      float t[kLanes] = {};
      store_some(t, e, n);
      kept = load(t);
    }
    store(scores + i, kept);
    sums = add(sums, kept);
  }
  if (now > old) {
    const float shrink = old <= kMasked ? 0.0f : std::exp(old - now);
    *pair.total *= shrink;
    for (int d = 0; d < a.value_dim; d += kLanes) store(pair.out + d, mul(load(pair.out + d), set1(shrink)));
    *pair.largest = now;
  }
  *pair.total += sum(sums);
}

template <typename E>
inline void attend_block(const Attention& a, const Pair* pairs, int count, int64_t first, int keys) {
  const int own = a.latent ? a.dim - a.value_dim : a.dim;  // channels that lie in `keys`
  const E* k = static_cast<const E*>(a.keys) + first * own;
  const E* v = static_cast<const E*>(a.values) + first * a.value_stride;
  float* tile = a.scratch + kPairs * kKeyBlock;
  if (!a.tiled && count > kFewPairs)  // read in strides, which the prefetcher doesn't follow either
    for (int64_t n = 0; n < static_cast<int64_t>(keys) * own; n += 64 / static_cast<int64_t>(sizeof(E))) __builtin_prefetch(k + n);
  // Keys and values of one layer are too short a stream for the processor's own prefetcher, and weights have driven them out.
  for (int64_t n = 0; n < static_cast<int64_t>(keys) * a.value_stride; n += 64 / static_cast<int64_t>(sizeof(E)))
    __builtin_prefetch(v + n);
  const float *q[kPairs], *w[kPairs];
  float *s[kPairs], *o[kPairs];
  for (int p = 0; p < count; ++p) {
    q[p] = pairs[p].q;
    w[p] = s[p] = a.scratch + p * kKeyBlock;
    o[p] = pairs[p].out;
  }
  for (int i = 0; i < keys; i += kLanes, k += static_cast<int64_t>(kLanes) * own) {
    float* at[kPairs];
    for (int p = 0; p < count; ++p) at[p] = s[p] + i;
    if (a.latent) {
      latent_tile(a, k, v + i * a.value_stride, std::min(keys - i, kLanes), tile);
      scores(tile, a.dim, count, q, at);
    } else if (a.tiled)
      scores(k, a.dim, count, q, at);
    else
      scores_of_rows(k, keys - i, a.dim, count, q, at, tile);
  }
  for (int p = 0; p < count; ++p) soften(a, pairs[p], first, keys, s[p]);
  int d = 0;
  for (; d + kValuesAtOnce * kLanes <= a.value_dim; d += kValuesAtOnce * kLanes) {
    float* at[kPairs];
    for (int p = 0; p < count; ++p) at[p] = o[p] + d;
    int p = 0;
    for (; p + kPairsAtOnce <= count; p += kPairsAtOnce)
      add_values<kPairsAtOnce, kValuesAtOnce>(v + d, a.value_stride, keys, w + p, at + p);
    if (p + 3 <= count) add_values<3, kValuesAtOnce>(v + d, a.value_stride, keys, w + p, at + p), p += 3;
    for (; p < count; ++p) add_values<1, kValuesAtOnce>(v + d, a.value_stride, keys, w + p, at + p);
  }
  for (; d < a.value_dim; d += kLanes) {
    const int n = a.tiled ? kLanes : lanes_left(d, a.value_dim);  // tiled values are padded
    for (int p = 0; p < count; ++p) {
      float* at = o[p] + d;
      if (n == kLanes)
        add_values<1, 1>(v + d, a.value_stride, keys, w + p, &at);
      else
        for (int key = 0; key < keys; ++key)
          store(at, fma(element_some(v + d + key * a.value_stride, n), set1(w[p][key]), load(at)));
    }
  }
}

void join(const Join& j) {
  float top = j.sink != nullptr ? *j.sink : kMasked;
  for (int64_t s = 0; s < j.splits; ++s) top = std::max(top, j.maxima[s * j.split_stride]);
  float total = j.sink != nullptr ? std::exp(*j.sink - top) : 0.0f;
  for (int64_t s = 0; s < j.splits; ++s) {
    const int64_t at = s * j.split_stride;
    if (j.totals[at] == 0) continue;
    const float share = j.splits == 1 && j.sink == nullptr ? 1.0f : std::exp(j.maxima[at] - top);
    total += share * j.totals[at];
  }
  const float inverse = 1.0f / total;
  for (int d = 0; d < j.value_dim; d += kLanes) {
    F sums = zero();
    for (int64_t s = 0; s < j.splits; ++s) {
      const int64_t at = s * j.split_stride;
      if (j.totals[at] == 0) continue;
      const float share = j.splits == 1 && j.sink == nullptr ? 1.0f : std::exp(j.maxima[at] - top);
      sums = fma(load(j.outputs + at * j.out_stride + d), set1(share * inverse), sums);
    }
    store_some(j.y + d, sums, lanes_left(d, j.value_dim));
  }
}

void to_halves(const float* x, uint16_t* y, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_half(y + i, load(x + i));
  for (; i < count; ++i) y[i] = to_half(x[i]);
}

void attend(const Attention& a) {
  for (int row = 0; row < a.rows;) {
    // as many rows as fit: their heads' pairs share every key and value that is read
    const int rows = a.heads >= kPairs ? 1 : (kPairs / a.heads < a.rows - row ? kPairs / a.heads : a.rows - row);
    for (int head0 = 0; head0 < a.heads; head0 += kPairs) {
      const int heads = a.heads - head0 < kPairs ? a.heads - head0 : kPairs;
      Pair pairs[kPairs];
      int count = 0;
      int32_t lowest = INT32_MAX, highest = INT32_MIN;
      for (int r = row; r < row + rows; ++r) {
        const int32_t position = a.query_positions[r];
        lowest = position < lowest ? position : lowest;
        highest = position > highest ? position : highest;
        for (int h = head0; h < head0 + heads; ++h) {
          const int64_t at = r * a.row_stride + h;
          Pair& pair = pairs[count++];
          pair = {a.q + r * a.q_stride + static_cast<int64_t>(h) * a.dim, a.outputs + at * a.out_stride, a.maxima + at,
                  a.totals + at, position, a.slopes != nullptr && a.furthest == 0 ? a.slopes[h] : 0.0f,
                  a.furthest > 0 ? a.slopes + static_cast<int64_t>(h) * (2 * a.furthest + 1) : nullptr};
          *pair.largest = kMasked;
          *pair.total = 0;
          for (int d = 0; d < a.value_dim; d += kLanes) store(pair.out + d, zero());
        }
      }
      int64_t first = a.first, end = a.end;
      if (a.key_positions == nullptr && a.prefix == 0) {  // keys that no row sees are not read
        if (a.causal && end > static_cast<int64_t>(highest) + 1) end = static_cast<int64_t>(highest) + 1;
        if (a.window > 0 && lowest - a.window + 1 > first) first = (lowest - a.window + 1) / kLanes * kLanes;
        if (first < a.first) first = a.first;
      }
      for (int64_t k = first; k < end; k += kKeyBlock) {
        const int keys = static_cast<int>(end - k < kKeyBlock ? end - k : kKeyBlock);
        if (a.cache == CacheKind::kF16)
          attend_block<uint16_t>(a, pairs, count, k, keys);
        else if (a.cache == CacheKind::kI8)
          attend_block<int8_t>(a, pairs, count, k, keys);
        else
          attend_block<float>(a, pairs, count, k, keys);
      }
    }
    row += rows;
  }
}

}  // namespace
}  // namespace edgeformer
