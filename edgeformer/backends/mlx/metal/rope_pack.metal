// One token's packed q|k|v, head by head: RMSNorm of queries and keys (if NORMED), rotation of the first ROTATED channels
// of both (pairs i, i + ROTATED/2), values as they are. Queries go to q [B, HEADS, T, DIM], keys and values side by side to
// kv [B, 2*KV_HEADS, T, DIM], ready to be written to the cache in one piece.
// One simdgroup per head: grid (32 * (HEADS + 2*KV_HEADS), T, B).
const uint head = threadgroup_position_in_grid.x;
const uint token = threadgroup_position_in_grid.y;
const uint row = threadgroup_position_in_grid.z;
const uint tokens = threadgroups_per_grid.y;
const uint lane = thread_index_in_simdgroup;
constexpr uint ALL = HEADS + 2 * KV_HEADS;
constexpr uint HALF = ROTATED / 2;

const device T* in = packed + ((size_t(row) * tokens + token) * ALL + head) * DIM;
device T* out = head < HEADS ? q + ((size_t(row) * HEADS + head) * tokens + token) * DIM
                             : kv + ((size_t(row) * 2 * KV_HEADS + (head - HEADS)) * tokens + token) * DIM;

if (head >= HEADS + KV_HEADS) {
  for (uint i = lane; i < DIM; i += 32) {
    out[i] = in[i];
  }
  return;  // the whole simdgroup is this head's
}

float inverse = 1.0f;
if (NORMED) {
  float squares = 0.0f;
  for (uint i = lane; i < DIM; i += 32) {
    squares += float(in[i]) * float(in[i]);
  }
  inverse = metal::precise::rsqrt(simd_sum(squares) / DIM + eps);
}
const float position = float(start[ROWS > 1 ? row : 0] + int(token));

for (uint i = lane; i < HALF; i += 32) {
  const uint j = i + HALF;
  float a = float(in[i]);
  float b = float(in[j]);
  if (NORMED) {
    a = float((head < HEADS ? q_weight[i] : k_weight[i]) * T(a * inverse));
    b = float((head < HEADS ? q_weight[j] : k_weight[j]) * T(b * inverse));
  }
  const float angle = position * (1.0f / periods[i]);
  const float c = metal::precise::cos(angle);
  const float s = metal::precise::sin(angle);
  out[i] = T(a * c - b * s);
  out[j] = T(a * s + b * c);
}
for (uint i = ROTATED + lane; i < DIM; i += 32) {
  float a = float(in[i]);
  if (NORMED) {
    a = float((head < HEADS ? q_weight[i] : k_weight[i]) * T(a * inverse));
  }
  out[i] = T(a);
}
