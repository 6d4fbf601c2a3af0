"""KV caches that hold the window only: ONNX Runtime's GroupQueryAttention from 1.29 on, and GenAI's loop over it."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from family_cases import CASES, settings
from support import load_tiny, random_ids, run_cached, saved, small_spec
from tolerances import FAMILY, FP16

from edgeformer.api import export, verify
from edgeformer.backends.native.library import LIBRARY
from edgeformer.cli import cli
from edgeformer.errors import ArtefactError, ExportError, InputError
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.layers.alibi import Alibi
from edgeformer.layers.mask import Mask
from edgeformer.quantization.kv_scales import cache_scales

RELEASE = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
needs_operator = pytest.mark.skipif(RELEASE < (1, 29), reason="ONNX Runtime below 1.29 has no windowed KV caches")
ONNXRUNTIME = require("onnxruntime")[0]
WINDOWED = [
    ("mistral", "window"),
    ("mistral", "narrow-window-odd-head"),
    ("qwen2", "mixed-windows"),
    ("gemma2", "windows-scale"),
    ("gemma3_text", "two-thetas"),
    ("phi3", "window-tied-gelu"),
    ("starcoder2", "no-bias-window-untied"),
]


def opened(folder, **options):
    return ONNXRUNTIME.open(folder, Options(threads=1, **options))


def tiny(folder, model_type="gemma3_text", case="two-thetas", **config):
    return load_tiny(folder, model_type, **settings(model_type, CASES[model_type][case] | config))[0]


@needs_operator
@pytest.mark.parametrize(("model_type", "case"), WINDOWED)
def test_each_family_computes_the_same(model_type, case, tmp_path):
    """Against the numpy back end: 160 positions in one pass, in chunks that are longer than the window, in single steps, and in
    a batch padded on the left."""
    loaded = tiny(tmp_path / "m", model_type, case)
    made = export(loaded, tmp_path / "o", windowed_cache=True)
    windows = made.manifest["cache_windows"]
    assert windows
    assert made.manifest["cache"] == "shared"
    ids = random_ids(loaded.spec.vocab, 2, 160)
    expected = require("numpy")[0].open(loaded, Options()).forward(ids[:1], all_positions=True)
    session = opened(made.folder, capacity=160)
    for name, cache in session.caches.items():
        assert cache.shape()[2] == windows.get(name.split(".")[1], 160)
    for prefill in (160, 1, 70):
        assert np.abs(run_cached(session, ids[:1], None, prefill) - expected).max() < FAMILY
    session.reset()
    chunks = [session.forward(ids[:1, a : a + 55], all_positions=True) for a in range(0, 160, 55)]
    assert np.abs(np.concatenate(chunks, 1) - expected).max() < FAMILY
    valid = np.stack([np.ones(160, np.int64), np.arange(160) >= 30])
    pair = require("numpy")[0].open(loaded, Options(batch=2))
    wanted = run_cached(pair, ids, valid, 60)
    found = run_cached(opened(made.folder, capacity=160, batch=2), ids, valid, 60)
    assert np.abs(found - wanted)[valid == 1].max() < FAMILY


@needs_operator
def test_every_windowed_layer_of_a_graph_is_windowed(tmp_path):
    """Attention biases and sinks, too; a layer without a window keeps its whole cache."""
    for name, attention in {
        "alibi": dict(position=Alibi(heads=4)),
        "sinks": dict(sinks=True),
        "softcap": dict(softcap=3.0),
    }.items():
        spec = small_spec(mask=Mask(window=9), **attention)
        whole = replace(spec.blocks[1], attention=replace(spec.blocks[1].attention, mask=Mask()))
        loaded, _ = saved(replace(spec, blocks=(spec.blocks[0], whole)), tmp_path / name)
        made = export(loaded, tmp_path / f"{name}-o", windowed_cache=True, inline=True)
        nodes = [n for n in onnx.load(str(made.folder / "model.onnx")).graph.node if n.op_type == "GroupQueryAttention"]
        told = [{a.name: a.i for a in n.attribute} for n in nodes]
        assert [(t.get("local_window_size"), t.get("sliding_window_cache")) for t in told] == [(9, 1), (None, None)]
        assert made.manifest["cache_windows"] == {"0": 9}
        ids = random_ids(31, 1, 64)
        expected = require("numpy")[0].open(loaded, Options()).forward(ids, all_positions=True)
        assert np.abs(run_cached(opened(made.folder), ids, None, 20) - expected).max() < FAMILY


@needs_operator
@pytest.mark.parametrize("precision", ["fp16", "q4", "q8f16"])
def test_precisions(precision, tmp_path):
    loaded = tiny(tmp_path / "m", hidden_size=96, intermediate_size=96)
    export(loaded, tmp_path / "whole", precision=precision)
    export(loaded, tmp_path / "windowed", precision=precision, windowed_cache=True)
    ids = random_ids(loaded.spec.vocab, 1, 120)
    whole, windowed = (run_cached(opened(tmp_path / n, capacity=120), ids, None, 50) for n in ("whole", "windowed"))
    assert np.abs(whole - windowed).max() < (FP16 if "16" in precision else FAMILY)


@needs_operator
def test_an_int8_cache(tmp_path):
    loaded = tiny(tmp_path / "m")
    ids = random_ids(loaded.spec.vocab, 1, 120)
    scales = cache_scales(loaded, ids)
    export(loaded, tmp_path / "whole", cache_scales=scales)
    export(loaded, tmp_path / "windowed", cache_scales=scales, windowed_cache=True)
    whole, windowed = (run_cached(opened(tmp_path / n, capacity=120), ids, None, 1) for n in ("whole", "windowed"))
    assert np.abs(whole - windowed).max() < FAMILY


@needs_operator
@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime:kernels", "ort_genai"])
def test_the_verdict(runtime, tmp_path):
    """`verify` against torch, in GenAI's loop, too, which allocates the buffers by its config."""
    if runtime == "ort_genai":
        pytest.importorskip("onnxruntime_genai")
    if runtime.endswith("kernels") and (reason := LIBRARY.missing()) is not None:
        pytest.skip(reason)
    tiny(tmp_path / "m")
    result = CliRunner().invoke(
        cli, ["export", str(tmp_path / "m"), "-o", str(tmp_path / "o"), "--windowed-cache", "--eos-id", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "4 layers hold their window only" in result.output
    told = json.loads((tmp_path / "o" / "genai_config.json").read_text())["model"]["decoder"]["sliding_window"]
    assert (told["window_size"], told["layers"]) == (20, [0, 1, 3, 4])
    assert verify(tmp_path / "o", tmp_path / "m", runtime=runtime).verdict == "pass"


@needs_operator
def test_padding_between_real_tokens_is_refused(tmp_path):
    """The operator's window counts slots: after padding on the right, it holds fewer real tokens than the model attends to."""
    loaded = tiny(tmp_path / "m")
    session = opened(export(loaded, tmp_path / "o", windowed_cache=True).folder, batch=2)
    ids, valid = random_ids(loaded.spec.vocab, 2, 10), np.stack([np.ones(10, np.int64), np.arange(10) < 6])
    session.forward(ids, valid)
    with pytest.raises(InputError, match="row 1 goes on after padding"):
        session.forward(ids[:, :1])
    session.reset()
    session.forward(ids, valid[:, ::-1])
    session.forward(ids[:, :1])


def test_an_older_onnxruntime_is_named(tmp_path, monkeypatch):
    made = export(tiny(tmp_path / "m"), tmp_path / "o", windowed_cache=True)
    monkeypatch.setattr(onnxruntime, "__version__", "1.28.3")
    with pytest.raises(ArtefactError, match=r"ONNX Runtime knows from 1\.29 on, and this is 1\.28\.3"):
        opened(made.folder)


@needs_operator
def test_a_manifest_that_lies(tmp_path):
    made = export(tiny(tmp_path / "m"), tmp_path / "o", windowed_cache=True)
    file = made.folder / "edgeformer.json"
    for window in (0, -1, 2**40):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"cache_windows": {"0": window}}))
        with pytest.raises(ArtefactError, match="a KV cache of"):
            opened(made.folder)


def test_refusals(tmp_path):
    loaded, _ = saved(small_spec(), tmp_path / "plain")
    with pytest.raises(ExportError, match="no layer of this model attends to a sliding window"):
        export(loaded, tmp_path / "o", windowed_cache=True)
    loaded, _ = saved(small_spec(mask=Mask(window=8, chunk=16)), tmp_path / "chunks")
    with pytest.raises(ExportError, match="no layer of this model attends to a sliding window"):
        export(loaded, tmp_path / "o", windowed_cache=True)
    loaded, _ = saved(small_spec(mask=Mask(window=8)), tmp_path / "windows")
    for target in ("portable", "cuda", "web", "webgpu", "coreml"):
        with pytest.raises(ExportError, match=f"the target {target} has no windowed KV caches; use --target cpu"):
            export(loaded, tmp_path / "o", windowed_cache=True, target=target)
    loaded, _ = saved(small_spec(mask=Mask(window=8), head_dim=12, position=None), tmp_path / "odd")
    with pytest.raises(ExportError, match=r"windowed KV cache needs GroupQueryAttention, and layers\.0\.attention"):
        export(loaded, tmp_path / "o", windowed_cache=True)
    assert not (tmp_path / "o").exists()
