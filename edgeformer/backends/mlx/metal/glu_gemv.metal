// act(x . gate_row) * (x . up_row) for a few rows of x: gate and up are the two halves of one packed matrix [2*HIDDEN, WIDTH].
// BITS 4 or 8: uint32 codes, a scale and a bias per GROUP weights; BITS 0: plain weights of type T.
// A simdgroup computes OUTPUTS neighbouring outputs: grid (32, simdgroups, rows of x), threadgroup (32, SIMDGROUPS).
constexpr int OUTPUTS = 4;
constexpr int STEP = 8;  // weights per lane and turn: one or two words of codes
const int lane = thread_index_in_simdgroup;
const int first = (threadgroup_position_in_grid.y * SIMDGROUPS + simdgroup_index_in_threadgroup) * OUTPUTS;
const size_t row = threadgroup_position_in_grid.z;
if (first >= HIDDEN) {
  return;  // whole simdgroups only, and nobody waits at a barrier
}

float gate[OUTPUTS] = {0};
float up[OUTPUTS] = {0};
for (int k = lane * STEP; k < WIDTH; k += 32 * STEP) {
  float xs[STEP];
  float sum = 0.0f;
  for (int i = 0; i < STEP; i++) {
    xs[i] = k + i < WIDTH ? float(x[row * WIDTH + k + i]) : 0.0f;
    sum += xs[i];
  }
  for (int o = 0; o < OUTPUTS; o++) {
    if (first + o >= HIDDEN) {
      break;
    }
    for (int half_index = 0; half_index < 2; half_index++) {
      const size_t out = size_t(first + o) + (half_index ? HIDDEN : 0);
      float dot = 0.0f;
      if (BITS == 0) {
        for (int i = 0; i < STEP; i++) {
          if (k + i < WIDTH) {
            dot += xs[i] * float(w[out * WIDTH + k + i]);
          }
        }
      } else {
        constexpr int WORD = BITS == 0 ? 1 : 32 / (BITS == 0 ? 1 : BITS);  // codes per word
        for (int word = 0; word < STEP / WORD; word++) {
          const uint32_t codes = uint32_t(w[out * (WIDTH / WORD) + k / WORD + word]);
          for (int i = 0; i < WORD; i++) {
            dot += xs[word * WORD + i] * float((codes >> (BITS * i)) & ((1u << BITS) - 1u));
          }
        }
        const size_t g = out * (WIDTH / GROUP) + k / GROUP;
        dot = float(scales[g]) * dot + float(biases[g]) * sum;
      }
      if (half_index) {
        up[o] += dot;
      } else {
        gate[o] += dot;
      }
    }
  }
}
for (int o = 0; o < OUTPUTS; o++) {
  const float g = float(T(simd_sum(gate[o])));  // rounded as the separate product would be
  const float u = float(T(simd_sum(up[o])));
  if (lane == 0 && first + o < HIDDEN) {
    float a = g;
    if (ACT == 0) {
      a = g / (1.0f + metal::precise::exp(-g));
    } else if (ACT == 1) {
      a = 0.5f * g * (1.0f + metal::precise::tanh(0.7978845608028654f * (g + 0.044715f * g * g * g)));
    } else if (ACT == 2) {
      a = metal::max(g, 0.0f);
    } else {
      a = metal::max(g, 0.0f) * metal::max(g, 0.0f);
    }
    y[row * HIDDEN + first + o] = T(a * u);
  }
}
