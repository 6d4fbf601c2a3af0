// A small encoder: token types, latent keys, maps per head, biases by distance, a window, poolings.
#include "check.h"
#include "encoder.h"

namespace edgeformer {

namespace {

constexpr int32_t kWidth = 64, kHeads = 4, kNope = 24, kRope = 8, kLatent = 40, kVocab = 50, kFurthest = 6;
constexpr int64_t kTexts = 5, kLength = 37;

struct Outputs {
  std::vector<float> tokens, first, mean;
};

Outputs encoded(const Kernels& k, int threads) {
  generator.seed(11);
  Model model(&k, kVocab);
  const int table = add_random(model, Kind::kF16, kVocab, kWidth), types = add_random(model, Kind::kF32, 2, kWidth);
  const int queries = add_random(model, Kind::kQ8, kHeads * (kNope + kRope), kWidth);
  const int down = add_random(model, Kind::kF32, kLatent + kRope, kWidth);
  const int up = add_random(model, Kind::kF32, kLatent, kNope);
  for (int h = 1; h < kHeads; ++h) add_random(model, Kind::kF32, kLatent, kNope);
  const int o = add_random(model, Kind::kQ4, kWidth, kHeads * kLatent);
  const std::vector<float> angles = normal(kLength * kRope), biases = normal(2 * kFurthest * kHeads + kHeads);
  const int turns = model.add_vector(angles.data(), static_cast<int64_t>(angles.size()));
  const int distances = model.add_vector(biases.data(), static_cast<int64_t>(biases.size()));
  std::vector<Instruction> code;
  auto add = [&](Op op, int32_t dst, int32_t src) -> Instruction& {
    code.push_back(instruction(op, dst, src));
    return code.back();
  };
  Instruction* i = &add(Op::kEmbed, 0, -1);
  i->matrix = table, i->width = kWidth;
  i = &add(Op::kTypes, 1, -1);
  i->matrix = types, i->width = kWidth;
  i = &add(Op::kAdd, 2, 0);
  i->other = 1, i->width = kWidth, i->quantize = 1;
  i = &add(Op::kLinear, 3, 2);
  i->matrix = queries;
  i = &add(Op::kLinear, 4, 2);
  i->matrix = down;
  i = &add(Op::kMaps, 5, 3);
  i->matrix = up, i->heads = kHeads, i->src_step = kNope + kRope, i->dst_step = kLatent;
  for (bool rotated : {false, true}) {  // queries: mapped channels, then rotated ones
    i = &add(Op::kHeads, 6, rotated ? 3 : 5);
    i->count = kHeads, i->dim = rotated ? kRope : kLatent, i->src_at = rotated ? kNope : 0, i->dst_at = rotated ? kLatent : 0;
    i->src_step = rotated ? kNope + kRope : kLatent, i->dst_step = kLatent + kRope;
    if (rotated) i->table = turns, i->rotated = kRope, i->interleaved = 1;
  }
  i = &add(Op::kAppend, -1, -1);
  i->other = i->total = 4, i->heads = 1, i->dim = kLatent + kRope, i->value_dim = kLatent, i->cache = 0;
  i = &add(Op::kAttend, 7, 6);
  i->count = kHeads, i->heads = 1, i->dim = kLatent + kRope, i->value_dim = kLatent, i->cache = 0, i->scale = 0.2f, i->window = 9;
  i->slopes = distances, i->furthest = kFurthest, i->quantize = 1;
  i = &add(Op::kLinear, 8, 7);
  i->matrix = o;
  for (int32_t how : {0, 1}) {
    i = &add(Op::kPool, 9 + how, 8);
    i->width = kWidth, i->count = how, i->kept = 1;
  }
  for (int32_t out : {0, 1, 2}) {
    i = &add(Op::kOut, -1, 8 + out);
    i->width = kWidth, i->count = out, i->kept = out > 0;
  }
  model.set_program({kWidth, kWidth, kWidth, kHeads * (kNope + kRope), kLatent + kRope, kHeads * kLatent, kHeads * (kLatent + kRope),
                     kHeads * kLatent, kWidth, kWidth, kWidth},
                    code, {{1, kLatent + kRope, kLatent, 1}});
  std::vector<int64_t> ids, mask, kinds;
  for (int64_t text = 0; text < kTexts; ++text)
    for (int64_t slot = 0; slot < kLength; ++slot) {
      ids.push_back((text * 31 + slot * 7) % kVocab);
      kinds.push_back((text + slot) % 2);
      mask.push_back(text == 0 || (text == 1 ? slot >= 5 : text == 2 ? slot < 20 : text == 3 ? slot % 3 == 1 : 0));  // the last: no token
    }
  Outputs made{std::vector<float>(kTexts * kLength * kWidth, NAN), std::vector<float>(kTexts * kWidth, NAN), std::vector<float>(kTexts * kWidth, NAN)};
  float* const outs[] = {made.tokens.data(), made.first.data(), made.mean.data()};
  EncoderSession session(model, kLength, false, threads);
  for (int turn = 0; turn < 2; ++turn) session.run({ids.data(), mask.data(), kinds.data(), kTexts, kLength, outs});
  return made;
}

void compare(const Outputs& found, const Outputs& expected, float limit, const char* isa, int threads) {
  expect_close(found.tokens, expected.tokens, limit, "tokens of an encoder", isa, threads);
  expect_close(found.first, expected.first, limit, "first tokens of an encoder", isa, threads);
  expect_close(found.mean, expected.mean, limit, "means of an encoder", isa, threads);
}

}  // namespace

void check_encoder(const Kernels& k, const Kernels& portable) {
  const Outputs alone = encoded(k, 1);
  float top = 0;
  for (const std::vector<float>* each : {&alone.tokens, &alone.first, &alone.mean})
    for (float x : *each) top = std::fmax(top, std::fabs(x));
  if (!(top > 0.05f)) std::printf("the encoder's outputs are too small to compare: %g\n", top), ++failures;
  compare(alone, encoded(portable, 1), 1e-6f, k.name, 0);
  for (int threads : {2, 3, 8}) compare(encoded(k, threads), alone, 0.0f, k.name, threads);
}

}  // namespace edgeformer
