"""Keys and values in int8: ONNX Runtime's GroupQueryAttention, and our MLX runtime."""

import numpy as np
import onnx
import pytest
from family_cases import TINY
from support import STDLIB, load_tiny, random_ids, saved, small_spec

from edgeformer import load
from edgeformer.api import export, verify
from edgeformer.backends.native.library import LIBRARY
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.errors import ExportError, InputError
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.quantization.calibration import calibration_windows
from edgeformer.quantization.kv_scales import cache_scales
from edgeformer.verification.parity import kl_divergence

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.array(read_tokenizer(STDLIB).encode((STDLIB / "validation.txt").read_text(encoding="utf-8")[:60_000]))


@pytest.fixture(scope="module")
def exported(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kv") / "m"
    scales = cache_scales(load(STDLIB), calibration_windows(text[:8192], 256, 32, 1024, 4096))
    return export(load(STDLIB), folder, cache_scales=scales), scales


def test_the_scales_are_the_largest_magnitudes():
    """The oracle: keys and values caught by the numpy back end, token by token."""
    loaded = load(STDLIB)
    ids = random_ids(4096, 2, 24)
    scales = cache_scales(loaded, ids)
    session = require("numpy")[0].open(loaded, Options())
    largest = {}
    for row in ids:
        session.reset()
        session.forward(row[None])
        for key, x in session.past.items():
            found = np.abs(x).max(axis=(0, 2))
            largest[key] = np.maximum(largest.get(key, 0), found)
    assert scales.keys() == largest.keys()
    for key, x in largest.items():
        assert np.allclose(scales[key] * 127, x, rtol=1e-4)


def test_the_graph_holds_int8(exported):
    made, _ = exported
    graph = onnx.load(str(made.folder / "model.onnx"), load_external_data=False).graph
    types = {
        i.name: i.type.tensor_type.elem_type
        for i in [*graph.input, *graph.output]
        if "key" in i.name or "value" in i.name
    }
    assert set(types.values()) == {onnx.TensorProto.INT8} and len(types) == 24
    assert (made.manifest["kv"], made.manifest["cache"]) == ("int8", "shared")


def test_close_to_the_original(exported, text):
    """On held-out text, prefill and cached steps: small in KL; one step of a scale is what each value may be off."""
    made, _ = exported
    ids = text[9000:9160]
    expected = require("numpy")[0].open(load(STDLIB), Options()).forward(ids[None], all_positions=True)[0]
    session = require("onnxruntime")[0].open(made.folder, Options(capacity=160))
    whole = session.forward(ids[None], all_positions=True)[0]
    session.reset()
    steps = [session.forward(ids[None, :80])[0], *(session.forward(ids[None, i : i + 1])[0] for i in range(80, 160))]
    assert kl_divergence(expected, whole) < 2e-3
    assert kl_divergence(expected[79:], np.stack(steps)) < 2e-3
    assert kl_divergence(expected, whole) > 1e-9  # it is in int8
    assert verify(made.folder, STDLIB, ids=ids, generate=16).verdict in ("pass", "near-tie")


def test_wrong_scales_are_caught(exported, text, tmp_path):
    """Twice the scale of one layer's keys is still a fine int8 cache; a hundredth clips everything, and the verdict says so."""
    _, scales = exported
    bad = dict(scales)
    bad["layers.0.attention", "k"] = bad["layers.0.attention", "k"] / 100
    export(load(STDLIB), tmp_path / "m", cache_scales=bad)
    assert verify(tmp_path / "m", STDLIB, ids=text[9000:9160], generate=8).verdict == "fail"


def test_the_native_kernel(exported, text):
    """One node, and the same codes as ONNX Runtime's own operator: its KL to the original, prefill and cached steps."""
    made, _ = exported
    onnxruntime = require("onnxruntime")[0]
    if (reason := LIBRARY.missing()) is not None:
        pytest.skip(reason)
    assert made.manifest["one_node"]
    ids = text[9000:9160]
    plain, kernels = (onnxruntime.open(made.folder, Options(capacity=160, variant=v)) for v in ("", "kernels"))
    found = []
    for session in (plain, kernels):
        first = session.forward(ids[None, :80], all_positions=True)[0]
        rest = [session.forward(ids[None, i : i + 1])[0] for i in range(80, 160)]
        found.append(np.concatenate([first, np.stack(rest)]))
    expected = require("numpy")[0].open(load(STDLIB), Options()).forward(ids[None], all_positions=True)[0]
    assert kl_divergence(expected, found[1]) < 2e-3
    assert kl_divergence(found[0], found[1]) < 1e-4
    assert not np.array_equal(*found), "bit-identical: the kernel did not run"
    assert verify(made.folder, STDLIB, ids=ids, generate=16, runtime="onnxruntime:kernels").verdict in (
        "pass",
        "near-tie",
    )


def test_mlx(text):
    """8 bits per token and group: closer than one scale for all tokens; the same prompt in chunks and in single steps."""
    pytest.importorskip("mlx.core")
    loaded, ids = load(STDLIB), text[9000:9160]
    expected = require("numpy")[0].open(loaded, Options()).forward(ids[None], all_positions=True)[0]
    runtime = require("mlx")[0]
    session = runtime.open(loaded, Options(capacity=160, variant="kv-int8"))
    whole = session.forward(ids[None], all_positions=True)[0]
    session.reset()
    steps = [session.forward(ids[None, :80])[0], *(session.forward(ids[None, i : i + 1])[0] for i in range(80, 160))]
    assert 1e-9 < kl_divergence(expected, whole) < 1e-3
    assert 1e-9 < kl_divergence(expected[79:], np.stack(steps)) < 1e-3
    assert session.facts()["kv"] == "int8"
    held = sum(x.nbytes for x in session.decoder.store.arrays.values())
    plain = runtime.open(loaded, Options(capacity=160))
    plain.forward(ids[None, :4])
    assert held < 0.4 * sum(
        x.nbytes for x in plain.decoder.store.arrays.values()
    )  # 10 of 32 bits: scales are float32 here


def test_refusals(tmp_path, text):
    loaded, _ = saved(small_spec(head_dim=12, position=None), tmp_path / "m")
    ids = random_ids(31, 2, 16)
    with pytest.raises(ExportError, match="an int8 KV cache needs GroupQueryAttention"):
        export(loaded, tmp_path / "o", cache_scales=cache_scales(loaded, ids))
    with pytest.raises(ExportError, match="an int8 KV cache needs GroupQueryAttention"):
        export(
            load(STDLIB), tmp_path / "o", target="portable", cache_scales=cache_scales(load(STDLIB), text[None, :64])
        )
    pytest.importorskip("mlx.core")
    with pytest.raises(InputError, match="needs a head size divisible by 32"):
        require("mlx")[0].open(loaded, Options(variant="kv-int8"))
    encoder = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    bert, _ = load_tiny(tmp_path / "bert", "bert", **encoder, vocab_size=TINY["vocab_size"])
    with pytest.raises(InputError, match="measured on decoders only, and this model is not a decoder"):
        cache_scales(bert, ids)


def test_command(tmp_path):
    from click.testing import CliRunner

    from edgeformer.cli import cli

    base = ["export", str(STDLIB), "-o", str(tmp_path / "o"), "--kv", "int8"]
    assert isinstance(CliRunner().invoke(cli, base).exception, InputError)
    result = CliRunner().invoke(cli, [*base, "--calibration", str(STDLIB / "validation.txt")])
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "o").weights is not None
