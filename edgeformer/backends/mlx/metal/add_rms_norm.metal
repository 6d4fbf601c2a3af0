// total = x + d; y = total / sqrt(mean(total^2) + eps) * w, one threadgroup per row.
// Rounds where the separate ops round: the sum to T, the normalised value to T, the product with w to T.
// T; x, d: [rows, WIDTH]; w: [WIDTH]; eps: scalar
threadgroup float sums[32];

const uint row = threadgroup_position_in_grid.x;
const uint me = thread_position_in_threadgroup.x;
const uint count = threads_per_threadgroup.x;
const uint lane = thread_index_in_simdgroup;
const uint group = simdgroup_index_in_threadgroup;
const size_t start = size_t(row) * WIDTH;

float squares = 0.0f;
for (uint i = me; i < WIDTH; i += count) {
  const T sum = T(float(x[start + i]) + float(d[start + i]));
  total[start + i] = sum;
  squares += float(sum) * float(sum);
}
squares = simd_sum(squares);
if (group == 0) {
  sums[lane] = 0.0f;  // simdgroups that don't exist add nothing
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (lane == 0) {
  sums[group] = squares;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
// every simdgroup sums for itself: cheaper than a third barrier
const float inverse = metal::precise::rsqrt(simd_sum(sums[lane]) / WIDTH + eps);
for (uint i = me; i < WIDTH; i += count) {
  y[start + i] = w[i] * T(float(total[start + i]) * inverse);
}
