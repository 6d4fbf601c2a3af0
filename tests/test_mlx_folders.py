"""Folders in mlx-lm's own types, and folders that mlx-lm's converter writes in all its bits and modes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tolerances
from mlx_cases import FORMULAS, STOCK, lm_logits
from support import STDLIB, hf_logits, load_tiny, random_ids, record_errors, saved

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

from mlx_lm.utils import load_model  # noqa: E402

from edgeformer.checkpoint.loading import load  # noqa: E402
from edgeformer.exporters.mlx.exporter import export_mlx  # noqa: E402
from edgeformer.inference.lookup import require  # noqa: E402
from edgeformer.inference.runtime import Options  # noqa: E402
from edgeformer.weights.affine import dequantize  # noqa: E402


@pytest.mark.parametrize("model_type", [*STOCK, *FORMULAS])
def test_stock_types(model_type, tmp_path):
    """Folders without code of their own, in mlx-lm, plain and in the same bits: a prompt and cached steps over 160 positions."""
    ids = random_ids(97, 160)
    if model_type in STOCK:
        loaded, hf = load_tiny(tmp_path / "hf", model_type, **STOCK[model_type])
        expected = hf_logits(hf, ids)
    else:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": model_type, **FORMULAS[model_type]}))
        known = load(tmp_path / "m")
        loaded = replace(saved(known.spec, tmp_path / "s", scale=0.1)[0], config=known.config)
        expected = require("numpy")[0].open(loaded, Options()).forward(ids[None], all_positions=True)[0]
    errors: dict[str, float] = {}
    for precision in ("fp32", "q8", "q4", "8bit", "4bit"):
        options = {} if precision == "fp32" else {"dtype": "fp32"}
        if precision.endswith("bit"):
            options["group_size"] = 32
        made = export_mlx(loaded, tmp_path / precision, precision=precision, stock=True, **options)
        assert made.manifest["target"] == model_type
        again = load(tmp_path / precision)
        if precision != "fp32":
            expected = require("numpy")[0].open(again, Options()).forward(ids[None], all_positions=True)[0]
        worst = float(np.abs(lm_logits(tmp_path / precision, ids, 120) - expected).max())
        errors[precision] = worst
        assert worst <= tolerances.FAMILY, precision
    record_errors("mlx", model_type, errors)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_dequantize_against_mlx(bits):
    x = mx.random.normal((6, 256), key=mx.random.key(bits))
    packed, scales, biases = mx.quantize(x, group_size=64, bits=bits)
    ours = dequantize(np.array(packed), np.array(scales), np.array(biases), bits)
    theirs = np.array(mx.dequantize(packed, scales, biases, group_size=64, bits=bits))
    assert np.abs(ours - theirs).max() <= 1e-6


@pytest.mark.parametrize(
    "how",
    [
        *(dict(bits=bits) for bits in (3, 5, 6)),
        *(
            dict(mode=mode, bits=bits, group_size=size)
            for mode, bits, size in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16))
        ),
        "mixed",
    ],
    ids=str,
)
def test_folders_of_mlx_lms_converter(how, tmp_path):
    """What `mlx_lm.convert` writes in other bits and modes, also mixed by layer. Oracle: mlx-lm's logits, in float32."""
    from mlx_lm.utils import quantize_model, save_model

    export_mlx(load(STDLIB), tmp_path / "plain", precision="fp32")
    model, config = load_model(tmp_path / "plain")

    def by_layer(path, module):
        return hasattr(module, "to_quantized") and {
            "group_size": 32,
            "bits": 6 if "v_proj" in path or "down" in path else 3,
        }

    settings = dict(group_size=32, bits=3, quant_predicate=by_layer) if how == "mixed" else {"group_size": 32, **how}
    model, config = quantize_model(model, config, **settings)
    (tmp_path / "q").mkdir()
    save_model(tmp_path / "q", model)
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    ids = random_ids(1000, 40)
    loaded = load(tmp_path / "q")
    ours = require("numpy")[0].open(loaded, Options()).forward(ids[None], all_positions=True)[0]
    theirs = lm_logits(tmp_path / "q", ids, 20)
    assert np.abs(ours - theirs).max() <= 2e-4
    again = require("mlx")[0].open(loaded, Options(capacity=64)).forward(ids[None], all_positions=True)[0]
    assert np.abs(again - theirs).max() <= 2e-4
