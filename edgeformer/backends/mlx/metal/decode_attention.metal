// softmax(softcap(q . k * scale) + bias) v over the keys a query sees, for a few new queries: one threadgroup per query and
// head, its simdgroups take every SIMDGROUPS-th key with a running maximum (Milakov & Gimelshein 2018), then merge.
// Keys and values are slices of a cache: strides are read, only the last axis must be dense. A key that the mask hides is
// not read. Grid (32 * SIMDGROUPS * HEADS, T, B).
threadgroup float best[SIMDGROUPS];
threadgroup float weight[SIMDGROUPS];
threadgroup float sums[SIMDGROUPS * VALUE_DIM];

const uint head = threadgroup_position_in_grid.x;
const uint query = threadgroup_position_in_grid.y;
const uint row = threadgroup_position_in_grid.z;
const uint tokens = threadgroups_per_grid.y;
const uint lane = thread_index_in_simdgroup;
const uint group = simdgroup_index_in_threadgroup;
constexpr int PER_KEY = (DIM + 31) / 32;
constexpr int PER_VALUE = (VALUE_DIM + 31) / 32;
const uint keys = uint(k_shape[2]);
const uint shared_head = head / GROUPS;

const int64_t q_at = row * q_strides[0] + head * q_strides[1] + query * q_strides[2];
const int64_t k_at = row * k_strides[0] + shared_head * k_strides[1];
const int64_t v_at = row * v_strides[0] + shared_head * v_strides[1];
const int64_t mask_at = (mask_shape[0] > 1 ? row : 0) * mask_strides[0] + (mask_shape[2] > 1 ? query : 0) * mask_strides[2];
const int64_t bias_at = (bias_shape[0] > 1 ? row : 0) * bias_strides[0] + (bias_shape[1] > 1 ? head : 0) * bias_strides[1] +
    (bias_shape[2] > 1 ? query : 0) * bias_strides[2];

float mine[PER_KEY];
for (int i = 0; i < PER_KEY; i++) {
  const int channel = i * 32 + int(lane);
  mine[i] = channel < DIM ? float(q[q_at + channel]) * scale : 0.0f;
}
float highest = -INFINITY;
float total = 0.0f;
float out[PER_VALUE] = {0};
for (uint key = group; key < keys; key += SIMDGROUPS) {
  if (MASKED && !mask[mask_at + key * mask_strides[3]]) {
    continue;  // the same for all lanes
  }
  float score = 0.0f;
  for (int i = 0; i < PER_KEY; i++) {
    const int channel = i * 32 + int(lane);
    if (channel < DIM) {
      score += mine[i] * float(k[k_at + key * k_strides[2] + channel]);
    }
  }
  score = simd_sum(score);
  if (CAPPED) {
    score = metal::precise::tanh(score / cap) * cap;
  }
  if (BIASED) {
    score += float(bias[bias_at + key * bias_strides[3]]);
  }
  const float before = highest;
  highest = metal::max(highest, score);
  const float shrink = metal::precise::exp(before - highest);
  const float p = metal::precise::exp(score - highest);
  total = total * shrink + p;
  for (int i = 0; i < PER_VALUE; i++) {
    const int channel = i * 32 + int(lane);
    if (channel < VALUE_DIM) {
      out[i] = out[i] * shrink + p * float(v[v_at + key * v_strides[2] + channel]);
    }
  }
}
if (lane == 0) {
  best[group] = highest;
  weight[group] = total;
}
for (int i = 0; i < PER_VALUE; i++) {
  const int channel = i * 32 + int(lane);
  if (channel < VALUE_DIM) {
    sums[group * VALUE_DIM + channel] = out[i];
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);

float top = -INFINITY;
for (int g = 0; g < SIMDGROUPS; g++) {
  top = metal::max(top, best[g]);
}
float whole = 0.0f;
for (int g = 0; g < SIMDGROUPS; g++) {
  whole += weight[g] > 0.0f ? weight[g] * metal::precise::exp(best[g] - top) : 0.0f;
}
const size_t y_at = ((size_t(row) * HEADS + head) * tokens + query) * VALUE_DIM;
for (uint channel = group * 32 + lane; channel < VALUE_DIM; channel += SIMDGROUPS * 32) {
  float value = 0.0f;
  for (int g = 0; g < SIMDGROUPS; g++) {
    value += weight[g] > 0.0f ? sums[g * VALUE_DIM + channel] * metal::precise::exp(best[g] - top) : 0.0f;
  }
  y[y_at + channel] = T(whole > 0.0f ? value / whole : 0.0f);  // a query that sees no key gets 0
}
