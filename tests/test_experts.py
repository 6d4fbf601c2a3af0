"""Mixtures of experts: the loss that balances them, and that only chosen ones are computed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import tolerances
from family_cases import CASES, settings
from support import load_tiny, random_ids

import edgeformer
from edgeformer.checkpoint.loading import load
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options

torch = pytest.importorskip("torch")


def tiny(folder, model_type="mixtral", **more):
    return load_tiny(folder, model_type, **settings(model_type, next(iter(CASES[model_type].values())) | more))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe"])
def test_load_balancing_loss_is_transformers(model_type, tmp_path):
    loaded, hf = tiny(tmp_path, model_type)
    ids = torch.from_numpy(random_ids(97, 2, 30))
    with torch.no_grad():
        expected = hf(ids, output_router_logits=True).aux_loss.item()
    model = edgeformer.build_torch(loaded)
    with edgeformer.load_balancing(model) as balance:
        model(ids)
        loss = balance()
    assert abs(loss.item() - expected) <= tolerances.LOSS
    loss.backward()
    assert model.layers[0].ffn.router.weight.grad.abs().max() > 0
    assert model.ops.routings is None  # nothing is kept outside the block


def test_load_balancing_loss_in_mlx(tmp_path):
    mx = pytest.importorskip("mlx.core")
    loaded, _ = tiny(tmp_path)
    ids = random_ids(97, 2, 30)
    found = []
    for model, array in (
        (edgeformer.build_torch(loaded), torch.from_numpy(ids)),
        (edgeformer.build_mlx(loaded), mx.array(ids)),
    ):
        with edgeformer.load_balancing(model) as balance:
            model(array)
            found.append(balance().item())
    assert abs(found[0] - found[1]) <= tolerances.LOSS


def test_without_experts_there_is_no_loss(tmp_path):
    model = edgeformer.build_torch(tiny(tmp_path, "llama")[0])
    with edgeformer.load_balancing(model) as balance, pytest.raises(ValueError, match="no mixture of experts"):
        balance()


def test_only_chosen_experts_are_computed(tmp_path):
    """Weights of experts that no token chooses are made not a number: whoever computes them all would spread it."""
    loaded, _ = tiny(tmp_path / "hf", num_hidden_layers=1)
    ids = random_ids(97, 1, 1)
    expected = require("numpy")[0].open(loaded, Options()).forward(ids)
    weights = {name: np.array(x, np.float32) for name, x in loaded.require_weights().items()}
    model = edgeformer.build_torch(loaded)
    model.ops.routings = []
    model(torch.from_numpy(ids))
    chosen = set(model.ops.routings[0][1].flatten().tolist())
    for name in ("gate", "up", "down"):
        for expert in set(range(5)) - chosen:
            weights[f"layers.0.ffn.{name}.weight"][expert] = np.nan
    edgeformer.save(loaded.spec, weights, tmp_path / "poisoned")
    poisoned = load(tmp_path / "poisoned", allow_nonfinite=True)
    export_onnx(poisoned, tmp_path / "onnx", target="cpu")
    for name in ("torch", "mlx"):
        assert np.abs(require(name)[0].open(poisoned, Options()).forward(ids) - expected).max() <= tolerances.LAYER, (
            name
        )
    session = require("onnxruntime")[0].open(tmp_path / "onnx", Options())
    assert np.abs(session.forward(ids) - expected).max() <= tolerances.LAYER
    ops = {
        n.op_type
        for f in onnx.load(str(tmp_path / "onnx" / "model.onnx"), load_external_data=False).functions
        for n in f.node
    }
    assert "NonZero" in ops and "ScatterND" in ops
