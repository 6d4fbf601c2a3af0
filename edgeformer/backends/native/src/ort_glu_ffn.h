// edgeformer::GluFfn(x [..., D], gate [F, D], up [F, D], down [D, F]; act) -> down · (act(gate · x) ⊙ (up · x))
#pragma once
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "ort_tensor.h"

namespace edgeformer {

inline Act activation(const std::string& name) {
  const char* names[] = {"identity", "silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "sigmoid", "tanh"};
  for (size_t i = 0; i < std::size(names); ++i)
    if (name == names[i]) return static_cast<Act>(i);
  throw std::runtime_error("edgeformer::GluFfn: unknown activation in the attribute 'act'");
}

struct GluFfn {
  static constexpr const char* kName = "GluFfn";
  static constexpr size_t kInputs = 4;
  static constexpr int64_t kChunk = 4;  // tiles per task: enough work to outweigh the cost of scheduling it
  const Kernels* kernels = kernels_here();
  Act act;
  std::unique_ptr<Model> weights;  // in tiles, if they never change

  explicit GluFfn(const Info& info) : act(activation(info.text("act"))) {
    const Tensor gate = info.constant(1), up = info.constant(2), down = info.constant(3);
    if (gate.data != nullptr && up.data != nullptr && down.data != nullptr) weights = tiled(gate, up, down);
  }

  std::unique_ptr<Model> tiled(const Tensor& gate, const Tensor& up, const Tensor& down) const {
    for (const Tensor* t : {&gate, &up, &down})
      if (t->type != ort::kFloat || t->shape.size() != 2 || t->count() == 0)
        throw std::runtime_error("edgeformer::GluFfn: weights must be float32 [outputs, inputs]");
    const int64_t hidden = gate.shape[0], width = gate.shape[1], outputs = down.shape[0];
    if (up.shape != gate.shape || down.shape[1] != hidden)
      throw std::runtime_error("edgeformer::GluFfn: gate and up must be [F, D], down [D, F]");
    auto made = std::make_unique<Model>(kernels, 1);
    const int64_t tiles = (hidden + kLanes - 1) / kLanes;
    const int first = made->add_matrix(Kind::kF32, 2 * hidden, width, 2 * tiles);
    const int second = made->add_matrix(Kind::kF32, outputs, hidden, (outputs + kLanes - 1) / kLanes);
    made->fill(first, 0, 2, 0, hidden, gate.data, nullptr);
    made->fill(first, 1, 2, 0, hidden, up.data, nullptr);
    made->fill(second, 0, 1, 0, outputs, down.data, nullptr);
    return made;
  }

  void compute(const Context& context) const {
    const Tensor x = context.input(0);
    std::unique_ptr<Model> given;
    if (weights == nullptr) given = tiled(context.input(1), context.input(2), context.input(3));
    const Model& model = weights != nullptr ? *weights : *given;
    const Matrix &first = model.matrices[0], &second = model.matrices[1];
    if (x.type != ort::kFloat || x.last() != first.cols)
      throw std::runtime_error("edgeformer::GluFfn: x must be float32 [..., D], D as in gate");
    const int64_t rows = x.rows(), hidden = second.cols;
    std::vector<int64_t> shape = x.shape;
    shape.back() = second.rows;
    float* y = static_cast<float*>(context.output(0, shape));
    std::vector<float> middle(static_cast<size_t>(rows * hidden));
    const Rows in{x.as<float>(), first.cols, nullptr, nullptr, nullptr, 0, 0};
    chunks(context, first.tile_count / 2, [&](int64_t from, int64_t end) {
      kernels->glu(first, from, end, in, 0, rows, middle.data(), hidden, nullptr, nullptr, act);
    });
    const Rows wide{middle.data(), hidden, nullptr, nullptr, nullptr, 0, 0};
    chunks(context, second.tile_count, [&](int64_t from, int64_t end) {
      kernels->linear(second, from, end, wide, 0, rows, y, second.rows, nullptr, Act::kNone);
    });
  }

 private:
  template <typename Body>
  static void chunks(const Context& context, int64_t count, const Body& body) {
    context.parallel(static_cast<size_t>((count + kChunk - 1) / kChunk), [&](size_t chunk) {
      const int64_t from = static_cast<int64_t>(chunk) * kChunk;
      body(from, std::min(from + kChunk, count));
    });
  }
};

}  // namespace edgeformer
