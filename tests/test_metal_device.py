"""On a Mac only: the kernels' cases on the GPU, and a model decoded with them. `bash tests/run -m metal`."""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from support import STDLIB

mx = pytest.importorskip("mlx.core")

from edgeformer.backends.mlx import metal  # noqa: E402
from edgeformer.backends.mlx.metal._kernel import FLOATS  # noqa: E402
from edgeformer.checkpoint.loading import load  # noqa: E402
from edgeformer.inference.lookup import require  # noqa: E402
from edgeformer.inference.runtime import Options  # noqa: E402
from edgeformer.measure import mac  # noqa: E402
from edgeformer.ops.sampling import Sampling  # noqa: E402

pytestmark = [
    pytest.mark.metal,
    pytest.mark.skipif(not mx.metal.is_available(), reason="no Metal: these run on a Mac"),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", metal.names())
def test_against_float64(name, dtype):
    kernel = metal.get(name)
    for case in kernel.cases(dtype):
        assert case.error(case.call(kernel)) <= 1, case.name


def test_which_head_sizes_mlx_has_kernels_for():
    assert mac.check_fused_attention()["other_than_our_table"] == []


@pytest.mark.parametrize("variant", ["kernels", "ops", "eager"])
def test_decoding(variant):
    """Logits and tokens of the compiled path against torch's."""
    pytest.importorskip("torch")
    loaded, ids = load(STDLIB), np.arange(5, 69)[None]
    session = require("mlx")[0].open(loaded, Options(variant=variant, capacity=300))
    expected = require("torch")[0].open(loaded, Options(capacity=300))
    prompt = session.forward(ids, all_positions=True) - expected.forward(ids, all_positions=True)
    step = session.forward(ids[:, :1]) - expected.forward(ids[:, :1])
    assert max(np.abs(prompt).max(), np.abs(step).max()) <= tolerances.REAL_WEIGHTS
    tokens = list(session.tokens(ids[0].tolist(), 64, Sampling()))
    expected.reset()
    assert tokens == list(expected.tokens(ids[0].tolist(), 64, Sampling()))
