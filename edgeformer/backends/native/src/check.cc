// Compares every instruction set that runs here with the portable one, and sessions of many threads with one of one thread.
// `cmake --build . --target edgeformer_native_check`, for sanitizers and for processors that only an emulator offers.
#include "check.h"

using namespace edgeformer;

namespace {

struct Int8Rows {
  std::vector<float> x, scales;
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;
  Rows view;
  Int8Rows(const Kernels& k, int64_t rows, int64_t cols)
      : x(normal(rows * cols)), scales(x.size()), codes(x.size()), sums(x.size()) {
    const int64_t groups = cols / kGroup;
    for (int64_t r = 0; r < rows; ++r)
      k.quantize(x.data() + r * cols, cols, {codes.data() + r * cols, scales.data() + r * groups, sums.data() + r * groups});
    view = {x.data(), cols, codes.data(), scales.data(), sums.data(), cols, groups};
  }
};

void check_products(const Kernels& k, const Kernels& p) {
  for (Kind kind : {Kind::kF32, Kind::kF16, Kind::kBF16, Kind::kQ8, Kind::kQ4, Kind::kQ8Exact, Kind::kQ4Exact})
    for (int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 13, 17, 70})
      for (int64_t cols : {32, 96, 288}) {
        const int64_t outputs = 40;
        Model model(&p, 1);
        const Matrix m = model.matrices[static_cast<size_t>(add_random(model, kind, outputs, cols))];
        const Matrix g = model.matrices[static_cast<size_t>(add_random(model, kind, outputs, cols, 2))];
        const std::vector<float> bias = normal(outputs);
        const Int8Rows in(p, rows, cols);
        std::vector<float> a(static_cast<size_t>(rows * outputs)), b(a.size());
        k.linear(m, 0, m.tile_count, in.view, 0, rows, a.data(), outputs, bias.data(), Act::kNone);
        p.linear(m, 0, m.tile_count, in.view, 0, rows, b.data(), outputs, bias.data(), Act::kNone);
        expect_close(a, b, 4e-6f, "linear", k.name, static_cast<int64_t>(kind) * 100 + rows);
        k.glu(g, 0, g.tile_count / 2, in.view, 0, rows, a.data(), outputs, bias.data(), bias.data(), Act::kSilu);
        p.glu(g, 0, g.tile_count / 2, in.view, 0, rows, b.data(), outputs, bias.data(), bias.data(), Act::kSilu);
        expect_close(a, b, 8e-6f, "glu", k.name, static_cast<int64_t>(kind) * 100 + rows);
      }
}

void check_rows(const Kernels& k, const Kernels& p) {
  for (int64_t count : {1, 15, 16, 17, 100, 576}) {
    const std::vector<float> x = normal(count, 3.0f), d = normal(count), w = normal(count), bias = normal(count);
    std::vector<float> a(x.size()), b(x.size()), sum_a(x.size()), sum_b(x.size());
    for (NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
      k.norm(kind, x.data(), d.data(), sum_a.data(), a.data(), count, w.data(), bias.data(), 1e-5f);
      p.norm(kind, x.data(), d.data(), sum_b.data(), b.data(), count, w.data(), bias.data(), 1e-5f);
      expect_close(a, b, 4e-6f, "norm", k.name, count);
      expect_close(sum_a, sum_b, 0.0f, "sum", k.name, count);
    }
    for (int act = 0; act <= static_cast<int>(Act::kTanh); ++act) {
      a = b = x;
      k.activate(static_cast<Act>(act), a.data(), count);
      p.activate(static_cast<Act>(act), b.data(), count);
      expect_close(a, b, 1e-6f, "activation", k.name, act);
    }
  }
  for (int64_t groups : {1, 5}) {
    const std::vector<float> x = normal(groups * kGroup);
    std::vector<int8_t> a(x.size()), b(x.size());
    std::vector<float> sa(5), sb(5);
    std::vector<int32_t> ta(5), tb(5);
    k.quantize(x.data(), groups * kGroup, {a.data(), sa.data(), ta.data()});
    p.quantize(x.data(), groups * kGroup, {b.data(), sb.data(), tb.data()});
    if (a != b || sa != sb || ta != tb) std::printf("quantize on %s\n", k.name), ++failures;
  }
}

template <typename E>
void fill_cache(std::vector<E>& to) {
  const std::vector<float> x = normal(static_cast<int64_t>(to.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    if constexpr (sizeof(E) == 2)
      to[i] = to_half(x[i]);
    else
      to[i] = x[i];
  }
}

template <typename E>
void check_attention(const Kernels& k, const Kernels& p) {
  const int64_t capacity = 320;
  for (int dim : {16, 20, 64, 128})
    for (int heads : {1, 3, 8, 40})
      for (int which = 0; which < 6; ++which) {
        const int rows = 1 + static_cast<int>(generator() % 7), value_dim = 16 * (which % 3) + 20, value_stride = (value_dim + 15) / 16 * 16;
        std::vector<E> keys(static_cast<size_t>(capacity * dim)), values(static_cast<size_t>(capacity * value_stride));
        fill_cache(keys);
        fill_cache(values);
        const std::vector<float> q = normal(rows * heads * dim), slopes = normal(heads, 0.1f);
        std::vector<int32_t> at(static_cast<size_t>(rows)), key_positions(static_cast<size_t>(capacity));
        std::vector<uint8_t> valid(static_cast<size_t>(capacity), 1);
        const int32_t past = static_cast<int32_t>(generator() % 250);
        for (int r = 0; r < rows; ++r) at[static_cast<size_t>(r)] = past + r;
        for (int64_t i = 0; i < capacity; ++i) key_positions[static_cast<size_t>(i)] = static_cast<int32_t>(i);
        valid[3] = 0;
        std::vector<E> key_rows(keys.size());
        for (int64_t i = 0; i < capacity; ++i)
          for (int d = 0; d < dim; ++d)
            key_rows[static_cast<size_t>(i * dim + d)] = keys[static_cast<size_t>((i / kLanes * dim + d) * kLanes + i % kLanes)];
        std::vector<E> value_rows(static_cast<size_t>(capacity * value_dim));
        for (int64_t i = 0; i < capacity; ++i)
          std::copy_n(&values[static_cast<size_t>(i * value_stride)], value_dim, &value_rows[static_cast<size_t>(i * value_dim)]);
        std::vector<float> results[3];
        for (int turn = 0; turn < 3; ++turn) {  // the portable set, this one, and this one with rows of keys and values as ONNX has them
          const Kernels* table = turn == 0 ? &p : &k;
          const size_t pairs = static_cast<size_t>(rows * heads);
          std::vector<float> maxima(pairs), totals(pairs), out(pairs * static_cast<size_t>(value_stride)),
              scratch(static_cast<size_t>(kScratch));
          Attention a{};
          a.q = q.data(), a.q_stride = heads * dim, a.rows = rows, a.heads = heads, a.dim = dim, a.value_dim = value_dim;
          a.keys = turn < 2 ? keys.data() : key_rows.data(), a.values = turn < 2 ? values.data() : value_rows.data();
          a.tiled = turn < 2, a.value_stride = turn < 2 ? value_stride : value_dim;
          a.cache = sizeof(E) == 2 ? CacheKind::kF16 : CacheKind::kF32;
          a.first = 0, a.end = past + rows, a.scale = 0.2f, a.causal = true;
          a.query_positions = at.data();
          if (which == 1) a.softcap = 5.0f;
          if (which == 2) a.window = 37;
          if (which == 3) a.chunk = 50;
          if (which == 4) a.slopes = slopes.data(), a.prefix = past + rows;
          if (which == 5) a.key_positions = key_positions.data(), a.valid = valid.data();
          a.maxima = maxima.data(), a.totals = totals.data(), a.outputs = out.data();
          a.out_stride = value_stride, a.row_stride = heads, a.scratch = scratch.data();
          table->attend(a);
          for (size_t i = 0; i < pairs; ++i)
            for (int d = 0; d < value_stride; ++d) {
              float& x = out[i * static_cast<size_t>(value_stride) + static_cast<size_t>(d)];
              x = d < value_dim ? x / totals[i] : 0.0f;
            }
          results[turn] = out;
        }
        for (int turn : {1, 2})
          expect_close(results[turn], results[0], 4e-6f, "attention", k.name, turn * 100000 + dim * 1000 + heads * 10 + which);
      }
}

// A model of one attention and one FFN in q8, stepped by some threads.
std::vector<float> stepped(const Kernels& k, int threads) {
  generator.seed(7);
  const int32_t width = 96, heads = 6, kv_heads = 2, dim = 16, hidden = 160, vocab = 70;
  Model model(&k, vocab);
  const int table = add_random(model, Kind::kQ8, vocab, width), qkv = add_random(model, Kind::kQ8, (heads + 2 * kv_heads) * dim, width);
  const int o = add_random(model, Kind::kQ4, width, heads * dim), ffn = add_random(model, Kind::kQ8, hidden, width, 2);
  const int down = add_random(model, Kind::kQ8, width, hidden);
  const std::vector<float> ones(static_cast<size_t>(width), 1.0f), angles = normal(64 * dim);
  const int weight = model.add_vector(ones.data(), width), turns = model.add_vector(angles.data(), 64 * dim);
  std::vector<Instruction> code;
  Instruction i = instruction(Op::kEmbed, 0, -1);
  i.matrix = table, i.width = width;
  code.push_back(i);
  i = instruction(Op::kNorm, 1, 0);
  i.width = width, i.count = 1, i.weight = weight, i.quantize = 1;
  code.push_back(i);
  i = instruction(Op::kLinear, 2, 1);
  i.matrix = qkv;
  code.push_back(i);
  i = instruction(Op::kAppend, -1, 2);
  i.other = i.total = 2, i.other_at = heads * dim, i.total_at = (heads + kv_heads) * dim;
  i.count = heads, i.heads = kv_heads, i.dim = i.value_dim = dim, i.cache = 0, i.table = turns, i.rotated = dim;
  code.push_back(i);
  i.op = Op::kAttend, i.dst = 3, i.other = i.total = i.table = -1, i.causal = 1, i.scale = 0.25f, i.quantize = 1;
  code.push_back(i);
  i = instruction(Op::kLinear, 4, 3);
  i.matrix = o;
  code.push_back(i);
  i = instruction(Op::kNorm, 1, 0);
  i.other = 4, i.total = 5, i.width = width, i.count = 1, i.weight = weight, i.quantize = 1;
  code.push_back(i);
  i = instruction(Op::kGlu, 6, 1);
  i.matrix = ffn, i.act = static_cast<int32_t>(Act::kSilu), i.quantize = 1;
  code.push_back(i);
  i = instruction(Op::kLinear, 4, 6);
  i.matrix = down;
  code.push_back(i);
  i = instruction(Op::kLast, 1, 4);
  i.width = width, i.quantize = 1, i.kept = 1;
  code.push_back(i);
  i = instruction(Op::kLinear, -1, 1);
  i.matrix = table, i.kept = 1;
  code.push_back(i);
  model.set_program({width, width, (heads + 2 * kv_heads) * dim, heads * dim, width, width, hidden}, code, {{kv_heads, dim, dim}});
  Session session(model, 2, 60, threads, CacheKind::kF16);
  std::vector<float> all;
  for (int64_t start = 0; start < 50;) {
    const int64_t count = start == 0 ? 20 : 1 + start % 3;
    std::vector<int64_t> ids(static_cast<size_t>(2 * count));
    std::vector<int32_t> positions(ids.size());
    for (size_t n = 0; n < ids.size(); ++n) {
      ids[n] = (start * 7 + static_cast<int64_t>(n) * 3) % vocab;
      positions[n] = static_cast<int32_t>(start + static_cast<int64_t>(n) % count);
    }
    std::vector<float> out(static_cast<size_t>(2 * vocab));
    session.step({ids.data(), positions.data(), positions.data(), nullptr, nullptr, nullptr, start, count, 1, out.data()});
    all.insert(all.end(), out.begin(), out.end());
    start += count;
  }
  return all;
}

void expect_faulty(const float* found, int64_t count, const char* what, const char* isa, int64_t detail) {
  for (int64_t i = 0; i < count; ++i)
    if (std::isfinite(found[i])) {
      std::printf("%s on %s (%lld): %g of a row with NaN or infinity\n", what, isa, static_cast<long long>(detail), found[i]);
      ++failures;
      return;
    }
}

// NaN and infinity must reach the result: a model that is broken must not look sound.
void check_faults(const Kernels& k) {
  for (float fault : {NAN, INFINITY, -INFINITY}) {
    for (Kind kind : {Kind::kQ8, Kind::kQ4, Kind::kQ8Exact, Kind::kQ4Exact})
      for (int64_t rows : {1, 4, 9}) {
        const int64_t cols = 96, outputs = 40, groups = cols / kGroup;
        Model model(&k, 1);
        const Matrix m = model.matrices[static_cast<size_t>(add_random(model, kind, outputs, cols))];
        Int8Rows in(k, rows, cols);
        in.x[static_cast<size_t>((rows - 1) * cols + 50)] = fault;
        const int64_t last = rows - 1;
        k.quantize(in.x.data() + last * cols, cols,
                   {in.codes.data() + last * cols, in.scales.data() + last * groups, in.sums.data() + last * groups});
        std::vector<float> out(static_cast<size_t>(rows * outputs));
        k.linear(m, 0, m.tile_count, in.view, 0, rows, out.data(), outputs, nullptr, Act::kNone);
        expect_faulty(out.data() + last * outputs, outputs, "linear", k.name, static_cast<int64_t>(kind));
        for (int64_t i = 0; i < last * outputs; ++i)
          if (!std::isfinite(out[static_cast<size_t>(i)])) {
            std::printf("a fault left its row on %s\n", k.name);
            ++failures;
            break;
          }
      }
    std::vector<float> x = normal(40), y(x.size());
    x[20] = fault;
    k.norm(NormKind::kRms, x.data(), nullptr, nullptr, y.data(), 40, nullptr, nullptr, 1e-5f);
    expect_faulty(&y[20], 1, "norm", k.name, 0);
  }
  for (int act = 0; act <= static_cast<int>(Act::kTanh); ++act) {
    std::vector<float> x(20, NAN);
    k.activate(static_cast<Act>(act), x.data(), 20);
    expect_faulty(x.data(), 20, "activation", k.name, act);
  }
  for (float softcap : {0.0f, 5.0f})
    for (bool in_query : {true, false}) {
      const int32_t dim = 16, keys_count = 40;
      std::vector<float> keys = normal(48 * dim), values = normal(48 * dim), q = normal(dim), out(static_cast<size_t>(dim));
      std::vector<float> scratch(static_cast<size_t>(kScratch));
      (in_query ? q[3] : values[5 * dim + 3]) = NAN;
      float top = 0, total = 0;
      const int32_t at = keys_count - 1;
      Attention a{};
      a.q = q.data(), a.q_stride = dim, a.rows = 1, a.heads = 1, a.dim = a.value_dim = dim;
      a.keys = keys.data(), a.values = values.data(), a.cache = CacheKind::kF32, a.tiled = true, a.value_stride = dim;
      a.end = keys_count, a.scale = 0.2f, a.causal = true, a.softcap = softcap, a.query_positions = &at;
      a.maxima = &top, a.totals = &total, a.outputs = out.data(), a.out_stride = dim, a.row_stride = 1;
      a.scratch = scratch.data();
      k.attend(a);
      out[3] /= total;
      expect_faulty(&out[3], 1, "attention", k.name, in_query ? 1 : 0);
    }
}

void check_halves() {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float f = from_half(static_cast<uint16_t>(h));
    if (f == f && to_half(f) != h) std::printf("fp16 %04x\n", h), ++failures;
  }
}

// Thousands of short steps: threads come late, sleep and wake at every point of them.
void check_team() {
  for (int threads : {1, 2, 5}) {
    Team team(threads);
    Phases phases;
    for (int step = 0; step < 3000; ++step) {
      const uint32_t first = phases.current();
      std::atomic<uint32_t> sums[6] = {};
      team.run([&](int) {
        for (uint32_t p = 0; p < 6; ++p)
          phases.run(first + p, 1 + p * 3, [&](uint32_t chunk) { sums[p].fetch_add(chunk + 1, std::memory_order_relaxed); });
      });
      for (uint32_t p = 0; p < 6; ++p) {
        const uint32_t count = 1 + p * 3;
        if (sums[p] != count * (count + 1) / 2) std::printf("phase %u of %d threads\n", p, threads), ++failures;
      }
    }
  }
}

}  // namespace

int main() {
  const Kernels& portable = *portable_kernels();
  check_halves();
  check_team();
  int checked = 0;
  for (const Kernels* k : {avx2_kernels(), avx512_kernels(), neon_kernels(), portable_kernels()}) {
    if (k == nullptr || !k->available()) continue;
    std::printf("%s\n", k->name);
    ++checked;
    check_products(*k, portable);
    check_rows(*k, portable);
    check_attention<float>(*k, portable);
    check_attention<uint16_t>(*k, portable);
    check_faults(*k);
    const std::vector<float> alone = stepped(*k, 1);
    check_encoder(*k, portable);
    for (int threads : {2, 3, 8}) expect_close(stepped(*k, threads), alone, 0.0f, "threads", k->name, threads);
  }
  std::printf("%d instruction sets, %d failures\n", checked, failures);
  return failures == 0 ? 0 : 1;
}
