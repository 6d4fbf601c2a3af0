"""T2: gradients of every component, MLX's against torch's. Oracle: torch's autograd on the torch back end."""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from component_cases import COMPONENTS, ENCODERS, PREFIXED
from support import random_ids, saved

import edgeformer

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")
from mlx.utils import tree_flatten  # noqa: E402

CASES = COMPONENTS | ENCODERS | PREFIXED


def loss(outputs):
    values = outputs.values() if isinstance(outputs, dict) else [outputs]
    return sum((v * v).mean() for v in values)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case, tmp_path):
    loaded, _ = saved(CASES[case], tmp_path / "model")
    ids, prefix = random_ids(31, 2, 20), np.array([4, 9])
    model, other = edgeformer.build_torch(loaded).eval(), edgeformer.build_mlx(loaded)
    given = {"prefix_length": torch.from_numpy(prefix)} if case in PREFIXED else {}
    loss(model(torch.from_numpy(ids), **given)).backward()
    given = {"prefix_length": mx.array(prefix)} if case in PREFIXED else {}
    found = dict(tree_flatten(nn.value_and_grad(other, lambda x: loss(other(x, **given)))(mx.array(ids))[1]))
    expected = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    assert expected.keys() == dict(model.named_parameters()).keys()  # the loss reaches every parameter
    largest = max(np.abs(g).max() for g in expected.values())
    for name, gradient in expected.items():
        # a bias of all scores of a query alike has no gradient but rounding
        scale = max(np.abs(gradient).max(), 1e-3 * largest if name.endswith("k.bias") else 1e-6 * largest)
        assert np.abs(np.array(found[name]) - gradient).max() <= tolerances.GRADIENT * scale, name
