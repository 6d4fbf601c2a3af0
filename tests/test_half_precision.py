"""Large activations in half precision: sums, norms and softmaxes that leave fp16's range are in float32 in every back end.

Oracle: the same spec and weights in numpy's float64.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import random_ids, saved, small_spec

from edgeformer.api import export
from edgeformer.errors import InputError
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.layers.additive_attention import AdditiveAttention
from edgeformer.layers.block import Block
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mask import Mask
from edgeformer.layers.pooling import Pooling
from edgeformer.layers.post_norm_block import PostNormBlock
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.shaw_attention import ShawAttention

TOKENS = 160


def encoder(**fields):
    attention = GQA(heads=4, kv_heads=4, head_dim=16, mask=Mask(causal=False), bias=True, output_bias=True)
    block = PostNormBlock(attention=attention, ffn=GLU(hidden=24), norm=LayerNorm())
    return Encoder(vocab=31, width=64, context=512, blocks=(block,) * 2, embed_norm=LayerNorm(), **fields)


def half_sessions(loaded, folder):
    """Every way to compute in fp16."""
    for name in ("torch", "mlx"):
        runtime = require(name)[0]
        yield f"{name} fp16", runtime.open(loaded, Options(threads=1, precision="fp16"))
    for target in ("cpu", "portable", "webgpu"):
        export(loaded, folder / target, precision="fp16", target=target)
        yield f"onnx {target} fp16", require("onnxruntime")[0].open(folder / target, Options(threads=1))


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_of_a_long_text(mode, normalize, tmp_path):
    """States of a few hundred: the sum over 160 tokens leaves fp16's range, and so does the sum of squares."""
    spec = encoder(pooling=Pooling(mode=mode, normalize=normalize))
    loaded, weights = saved(spec, tmp_path / "m")
    last = [n for n in weights if n.startswith("layers.1.") and n.endswith("norm.weight")][-1]
    biases = last.replace("weight", "bias")
    loaded = rewritten(
        spec, weights | {last: weights[last] * 300 + 300, biases: np.full(64, 700.0, np.float32)}, tmp_path
    )
    ids = random_ids(31, 2, TOKENS)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    expected = require("numpy")[0].open(loaded, Options(threads=1)).encode(inputs)["sentence_embedding"]
    for name, session in half_sessions(loaded, tmp_path):
        found = session.encode(inputs)["sentence_embedding"]
        assert np.isfinite(found).all(), name
        assert np.abs(found - expected).max() <= 2e-2 * np.abs(expected).max(), name


def rewritten(spec, weights, folder):
    from edgeformer.checkpoint import saving
    from edgeformer.checkpoint.loading import load

    saving.save(spec, weights, folder / "m2")
    return load(folder / "m2")


ATTENTIONS = {
    "gqa": GQA(heads=4, kv_heads=2, head_dim=64),
    "shaw": ShawAttention(heads=4, head_dim=64, furthest=8),
    "additive": AdditiveAttention(heads=4, head_dim=64),
}


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_scores_beyond_the_range(kind, tmp_path):
    """Queries and keys of about 60 in 64 channels: their products are 200,000, the scaled scores 30,000."""
    norm = RMSNorm()
    block = Block(attention=ATTENTIONS[kind], ffn=GLU(hidden=24), norm=norm)
    spec = replace(small_spec(), blocks=(block,) * 2, norm=norm, width=64)
    _, weights = saved(spec, tmp_path / "m")
    factor = 1.0 if kind == "additive" else 25.0
    large = {n: w * factor for n, w in weights.items() if n.endswith(("attention.q.weight", "attention.k.weight"))}
    loaded = rewritten(spec, weights | large, tmp_path)
    ids = random_ids(31, 1, 40)
    for name, session in half_sessions(loaded, tmp_path):
        assert np.isfinite(session.forward(ids, all_positions=True)).all(), name


@pytest.mark.parametrize("norm", [RMSNorm(), LayerNorm()], ids=["rms_norm", "layer_norm"])
def test_norms_of_large_states(norm, tmp_path):
    """States of thousands, whose squares fp16 can't hold: the norms' outputs are right all the same."""
    block = Block(attention=GQA(heads=4, kv_heads=2, head_dim=16), ffn=GLU(hidden=24), norm=norm)
    spec = replace(small_spec(), blocks=(block,) * 2, norm=norm)
    _, weights = saved(spec, tmp_path / "m")
    loaded = rewritten(spec, weights | {"embed.weight": weights["embed.weight"] * 4000}, tmp_path)
    ids = random_ids(31, 1, 40)
    expected = require("numpy")[0].open(loaded, Options(threads=1)).forward(ids, all_positions=True)
    for name, session in half_sessions(loaded, tmp_path):
        found = session.forward(ids, all_positions=True)
        assert np.isfinite(found).all(), name
        assert np.abs(found - expected).max() <= 2e-2 * np.abs(expected).max(), name


# ------------------------------------------------------------------------------------------------ what encoders are given


def test_ranges_of_an_encoders_inputs(tmp_path):
    """Ids, types and masks that can't be are one error in every runtime, before anything runs; what isn't given is usual."""
    spec = encoder(token_types=2)
    loaded, _ = saved(spec, tmp_path / "m")
    ids = random_ids(31, 2, 9)
    export(loaded, tmp_path / "onnx")
    opened = [require(name)[0].open(loaded, Options(threads=1)) for name in ("numpy", "torch", "mlx")]
    opened.append(require("onnxruntime")[0].open(tmp_path / "onnx", Options(threads=1)))
    zeros, ones = np.zeros_like(ids), np.ones_like(ids)
    wrong = {
        "token type 2 is outside": {"token_type_ids": zeros + 2},
        "token type -1 is outside": {"token_type_ids": zeros - 1},
        "token id 31 is outside": {"input_ids": ids * 0 + 31},
        r"token_type_ids has shape \[2, 3\]": {"token_type_ids": zeros[:, :3]},
        r"the mask has shape \[2, 4\]": {"attention_mask": ones[:, :4]},
        "values other than 0": {"attention_mask": ones * 2},
    }
    first = None
    for session in opened:
        for message, inputs in wrong.items():
            with pytest.raises(InputError, match=message):
                session.encode({"input_ids": ids, "attention_mask": ones} | inputs)
        bare, full = (
            session.encode({"input_ids": ids}),
            session.encode({"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}),
        )
        assert np.array_equal(bare["last_hidden_state"], full["last_hidden_state"])
        first = bare["last_hidden_state"] if first is None else first
        assert np.abs(bare["last_hidden_state"] - first).max() < 1e-4


def test_one_token_type_is_no_input(tmp_path):
    """RoBERTa's tokenizers give no token_type_ids: its graphs don't ask for them, and its one vector is added all the same."""
    import onnx

    spec = encoder(token_types=1)
    loaded, weights = saved(spec, tmp_path / "m")
    assert np.abs(weights["type_embed.weight"]).max() > 0.1
    export(loaded, tmp_path / "onnx")
    names = [i.name for i in onnx.load(str(tmp_path / "onnx" / "model.onnx"), load_external_data=False).graph.input]
    assert names == ["input_ids", "attention_mask"]
    ids = random_ids(31, 2, 9)
    without = rewritten(spec, weights | {"type_embed.weight": weights["type_embed.weight"] * 0}, tmp_path)
    runs = [
        require(n)[0].open(loaded, Options(threads=1)).encode({"input_ids": ids}) for n in ("numpy", "torch", "mlx")
    ]
    runs.append(require("onnxruntime")[0].open(tmp_path / "onnx", Options(threads=1)).encode({"input_ids": ids}))
    for out in runs[1:]:
        assert np.abs(out["last_hidden_state"] - runs[0]["last_hidden_state"]).max() < 1e-4
    other = require("numpy")[0].open(without, Options(threads=1)).encode({"input_ids": ids})
    assert np.abs(other["last_hidden_state"] - runs[0]["last_hidden_state"]).max() > 1e-2
