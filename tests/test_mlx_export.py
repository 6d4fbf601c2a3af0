"""`export --to mlx`: what mlx-lm loads says what transformers says; quantized folders hold mlx-lm's own bits; the way back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tolerances
from family_cases import CASES, DECODERS, settings
from mlx_cases import lm_logits
from support import STDLIB, hf_logits, load_tiny, random_ids, saved, small_spec
from test_layers import BLOCKS, NORM

mx = pytest.importorskip("mlx.core")
mlx_lm = pytest.importorskip("mlx_lm")

from mlx_lm.utils import load_model  # noqa: E402

from edgeformer.checkpoint import bundle  # noqa: E402
from edgeformer.checkpoint.loading import load  # noqa: E402
from edgeformer.errors import ArtefactError, CheckpointError, ExportError, InputError  # noqa: E402
from edgeformer.exporters.mlx.exporter import export_mlx, stock_type  # noqa: E402
from edgeformer.exporters.onnx.exporter import export_onnx  # noqa: E402
from edgeformer.inference.lookup import require  # noqa: E402
from edgeformer.inference.runtime import Options  # noqa: E402
from edgeformer.layers.decoder import Decoder  # noqa: E402
from edgeformer.layers.rope import Rope  # noqa: E402
from edgeformer.spec.serialization import digest  # noqa: E402
from edgeformer.verification.parity import verify  # noqa: E402
from edgeformer.verification.weight_checks import check_affine  # noqa: E402
from edgeformer.weights import safetensors_writer as safetensors  # noqa: E402
from edgeformer.weights.affine import AffineTensor  # noqa: E402


@pytest.mark.parametrize(("model_type", "name"), DECODERS)
def test_mlx_lm_says_what_transformers_says(model_type, name, tmp_path):
    loaded, hf = load_tiny(tmp_path / "hf", model_type, **settings(model_type, CASES[model_type][name]))
    made = export_mlx(loaded, tmp_path / "mlx", precision="fp32")
    own_code = made.manifest["target"] == "edgeformer"
    assert any("trust_remote_code" in note for note in made.notes) == own_code
    ids = random_ids(97, 160)
    expected = hf_logits(hf, ids)
    assert np.abs(lm_logits(tmp_path / "mlx", ids, 120) - expected).max() <= tolerances.FAMILY
    again = load(tmp_path / "mlx")  # and the way back
    assert digest(again.spec) == digest(loaded.spec)
    ours = require("numpy")[0].open(again, Options()).forward(ids[None], all_positions=True)[0]
    assert np.abs(ours - expected).max() <= tolerances.FAMILY


@pytest.mark.parametrize("case", ["yarn", "linear"])
def test_scaled_rotation_in_stock_folders(case, tmp_path):
    """transformers 5 spells these `rope_parameters`, which mlx-lm's llama doesn't read."""
    rope = {
        "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
        "linear": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
    }[case]
    loaded, hf = load_tiny(tmp_path / "hf", "llama", **settings("llama", {"head_dim": 16, "rope_parameters": rope}))
    made, ids = export_mlx(loaded, tmp_path / "mlx", precision="fp32", stock=True), random_ids(97, 150)
    assert made.manifest["target"] == "llama"
    assert np.abs(lm_logits(tmp_path / "mlx", ids, 100) - hf_logits(hf, ids)).max() <= tolerances.FAMILY


@pytest.mark.parametrize("block", ["mla", "softcap", "parallel"])
def test_architectures_that_no_tool_knows(block, tmp_path):
    """A model_file folder in mlx-lm against the numpy back end."""
    spec = Decoder(vocab=31, width=32, context=64, blocks=(BLOCKS[block],) * 2, norm=NORM)
    loaded, _ = saved(spec, tmp_path / "model")
    export_mlx(loaded, tmp_path / "mlx")
    ids = random_ids(31, 30)
    expected = require("numpy")[0].open(loaded, Options()).forward(ids[None], all_positions=True)[0]
    scale = np.abs(expected).max()
    assert np.abs(lm_logits(tmp_path / "mlx", ids, 20) - expected).max() <= tolerances.LAYER * scale
    model, _ = load_model(tmp_path / "mlx", trust_remote_code=True)
    assert not hasattr(model.make_cache()[0], "merge")  # what mlx-lm asks before it batches
    from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

    cache = model.make_cache()
    model(mx.array([[1, 2, 3]]), cache=cache)
    save_prompt_cache(str(tmp_path / "prompt.safetensors"), cache)
    again = load_prompt_cache(str(tmp_path / "prompt.safetensors"))
    step = mx.array([[4]])
    assert mx.allclose(model(step, cache=again), model(step, cache=cache)).item()
    with pytest.raises(ValueError, match="trust_remote_code"):
        mlx_lm.utils.load_model(tmp_path / "mlx")
    with pytest.raises(ExportError, match="no model type of mlx-lm computes this architecture: the nearest is llama"):
        export_mlx(loaded, tmp_path / "stock", stock=True)


def test_two_hundred_tokens(tmp_path):
    """stdlib-5m: transformers', mlx-lm's on the exported folder, and our runtime's greedy tokens are the same."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    hf = transformers.AutoModelForCausalLM.from_pretrained(STDLIB, dtype=torch.float32)
    prompt = [1, 357, 412, 88]
    with torch.no_grad():
        out = hf.generate(torch.tensor([prompt]), max_new_tokens=200, do_sample=False, eos_token_id=None)
    expected = out[0, len(prompt) :].tolist()
    export_mlx(load(STDLIB), tmp_path / "mlx", precision="fp32")
    model, tokenizer = mlx_lm.load(str(tmp_path / "mlx"))
    assert tokenizer.encode("def f(x):")
    steps = mlx_lm.generate.__globals__["generate_step"](mx.array(prompt), model, max_tokens=200)
    from edgeformer.ops.sampling import Sampling

    session = require("mlx")[0].open(load(STDLIB), Options(capacity=210))
    assert [int(token) for token, _ in steps] == expected
    assert list(session.tokens(prompt, 200, Sampling())) == expected


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (8, 64), (8, 128)])
def test_quantized_folders_are_mlx_lms_own(bits, group_size, tmp_path):
    """The same codes, scales and biases that mlx_lm.convert writes; the same logits in mlx-lm, our runtime, and ONNX."""
    export_mlx(load(STDLIB), tmp_path / "ours", precision=f"{bits}bit", group_size=group_size, dtype="fp32")
    mlx_lm.convert(
        str(STDLIB), str(tmp_path / "theirs"), quantize=True, q_bits=bits, q_group_size=group_size, dtype="float32"
    )
    ours, theirs = (
        {k: np.array(v) for k, v in mx.load(str(tmp_path / n / "model.safetensors")).items()}
        for n in ("ours", "theirs")
    )
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
    ids = random_ids(4096, 60)
    reference = lm_logits(tmp_path / "theirs", ids, 40)
    assert np.abs(lm_logits(tmp_path / "ours", ids, 40) - reference).max() <= tolerances.REAL_WEIGHTS
    loaded = load(tmp_path / "theirs")  # a folder that edgeformer didn't write
    assert any(isinstance(s.stored, AffineTensor) for s in loaded.weights.sources.values())
    export_onnx(loaded, tmp_path / "onnx")
    for name, source in {"mlx": loaded, "torch": loaded, "onnxruntime": tmp_path / "onnx"}.items():
        session = require(name)[0].open(source, Options(capacity=64))
        logits = session.forward(ids[None], all_positions=True)[0]
        assert np.abs(logits - reference).max() <= tolerances.REAL_WEIGHTS, name


def test_the_packed_path_runs_quantized(tmp_path):
    export_mlx(load(STDLIB), tmp_path / "q", precision="4bit")
    session = require("mlx")[0].open(tmp_path / "q", Options(capacity=64))
    attention = session.model.layers[0].attention
    assert attention["q_k_v"].bits == 4 and attention["q_k_v"].weight.dtype == mx.uint32
    assert attention["q_k_v"].weight.shape == ((8 + 2 + 2) * 32, 256 // 8)
    assert session.model.embed.weight.dtype == mx.uint32
    verdict = verify(tmp_path / "q", load(STDLIB), runtime="mlx", length=40, generate=8)
    assert verdict.verdict == "pass" and verdict.checks[0].name == "weights"


def test_gpt2_quantized_with_one_map_for_q_k_v(tmp_path):
    """mlx-lm holds GPT-2's q, k, v as one map, not transposed: quantized as one, read back as three."""
    model_type, config = "gpt2", {"n_embd": 64, "n_head": 4, "vocab_size": 96}
    loaded, _ = load_tiny(tmp_path / "hf", model_type, **settings(model_type, config))
    export_mlx(loaded, tmp_path / "q", precision="8bit", group_size=32, dtype="fp32", stock=True)
    ids = random_ids(96, 40)
    expected = lm_logits(tmp_path / "q", ids, 30)
    for name in ("numpy", "mlx"):
        ours = (
            require(name)[0].open(load(tmp_path / "q"), Options(capacity=64)).forward(ids[None], all_positions=True)[0]
        )
        assert np.abs(ours - expected).max() <= tolerances.FAMILY, name


def test_a_quantized_folder_that_brings_its_code(tmp_path):
    """No stock type and 4 bits: read by mlx-lm, by our runtime, and back as a checkpoint; foreign code is not run."""
    spec = Decoder(vocab=32, width=64, context=64, blocks=(BLOCKS["softcap"],) * 2, norm=NORM)
    loaded, _ = saved(spec, tmp_path / "m")
    export_mlx(loaded, tmp_path / "q", precision="4bit", group_size=32, dtype="fp32")
    ids = random_ids(32, 30)
    expected = lm_logits(tmp_path / "q", ids, 20)
    again = load(tmp_path / "q")
    assert digest(again.spec) == digest(spec) and "AFFINE4G32" in again.weights.dtypes()
    for name, source in {"numpy": again, "mlx": tmp_path / "q", "mlx_lm": tmp_path / "q"}.items():
        ours = require(name)[0].open(source, Options(capacity=64)).forward(ids[None], all_positions=True)[0]
        assert np.abs(ours - expected).max() <= tolerances.LAYER * np.abs(expected).max(), name
    code = tmp_path / "q" / "edgeformer_model.py"
    code.write_text(code.read_text().replace("Model", "Medel"))  # of the same size
    with pytest.raises(ArtefactError, match="which would run as code"):
        require("mlx_lm")[0].open(tmp_path / "q", Options())


def test_quantized_again_keeps_the_codes(tmp_path):
    export_mlx(load(STDLIB), tmp_path / "a", precision="4bit", group_size=32)
    made = export_mlx(load(tmp_path / "a"), tmp_path / "b")
    assert made.manifest["precision"] == "4bit-g32"
    a, b = (mx.load(str(tmp_path / n / "model.safetensors")) for n in "ab")
    assert all(mx.array_equal(a[k], b[k]) for k in a)


def test_verify_notices_other_weights(tmp_path):
    """A quantized folder of another model has plausible logits; its weights are not the original's."""
    spec = small_spec()
    loaded, weights = saved(spec, tmp_path / "a")
    other = {n: np.ascontiguousarray(w[::-1]) for n, w in weights.items()}
    from edgeformer.checkpoint import saving

    saving.save(spec, other, tmp_path / "b")
    export_mlx(load(tmp_path / "b"), tmp_path / "q", precision="8bit", group_size=32)
    verdict = verify(tmp_path / "q", loaded, length=20, generate=4)
    assert (
        verdict.verdict == "fail"
        and verdict.checks[0].max_abs > 10
        and "differs from the original" in verdict.checks[0].note
    )


@pytest.mark.parametrize("what", ["layers.0.ffn_norm.weight", "norm.weight"])
def test_verify_notices_another_norm(what, tmp_path):
    """What isn't quantized has to be the original's bit for bit: the logits' reference has the folder's own."""
    spec = small_spec()
    loaded, weights = saved(spec, tmp_path / "a")
    from edgeformer.checkpoint import saving

    saving.save(spec, {n: w * 3 if n == what else w for n, w in weights.items()}, tmp_path / "b")
    export_mlx(load(tmp_path / "b"), tmp_path / "q", precision="8bit", group_size=32)
    verdict = verify(tmp_path / "q", loaded, length=20, generate=4)
    assert verdict.checks[0].verdict == "fail" and what in verdict.checks[0].note


@pytest.mark.parametrize("damage", ["zeroed", "nan"])
def test_a_wrong_scale_grants_itself_no_room(damage, tmp_path):
    """A map whose codes are 0 and whose scale is 1 dequantizes to 0, within one step of it; one NaN is not within anything."""
    import shutil

    from safetensors.numpy import load_file, save_file

    spec = small_spec()
    loaded, _ = saved(spec, tmp_path / "a")
    export_mlx(loaded, tmp_path / "q", precision="8bit", group_size=32, dtype="fp32")
    shutil.copytree(tmp_path / "q", tmp_path / "d")
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    path = next(k for k in tensors if k.endswith("self_attn.o_proj.scales")).removesuffix(".scales")
    if damage == "nan":
        tensors[f"{path}.scales"][0, 0] = np.nan
    else:
        for part, value in (("weight", 0), ("scales", 1), ("biases", 0)):
            tensors[f"{path}.{part}"][:] = value
    save_file(tensors, tmp_path / "d" / "model.safetensors", {"format": "mlx"})
    if damage == "nan":
        with pytest.raises(CheckpointError, match=r"self_attn\.o_proj\.scales holds nan"):
            check_affine(load(tmp_path / "d"), loaded)
    check = check_affine(load(tmp_path / "d", allow_nonfinite=True), loaded)
    assert check.verdict == "fail" and "attention.o" in check.note


@pytest.mark.parametrize("precision", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_right_weights_pass_in_every_type(precision, dtype, tmp_path):
    spec = replace(small_spec(), width=64)
    loaded, _ = saved(spec, tmp_path / "a", scale=0.05)
    export_mlx(loaded, tmp_path / "q", precision=precision, group_size=32, dtype=dtype)
    verdict = verify(tmp_path / "q", loaded, length=20, generate=4)
    assert verdict.verdict == "pass" and (
        dtype == "fp32" or mx.metal.is_available() or "arithmetic wasn't tested" in verdict.notes[0]
    )


def test_bench_compares_quantized_weights_with_the_original(tmp_path):
    """Two quantized folders of one precision have a reference each; one of another model is no row that counts."""
    from edgeformer.api import bench
    from edgeformer.measure.settings import Settings

    spec = small_spec()
    _, weights = saved(spec, tmp_path / "a")
    from edgeformer.checkpoint import saving

    saving.save(spec, {n: w * 1.5 for n, w in weights.items()}, tmp_path / "b")
    for name, dtype in (("a", "fp32"), ("a", "bf16"), ("b", "fp32")):
        export_mlx(load(tmp_path / name), tmp_path / f"q-{name}-{dtype}", precision="8bit", group_size=32, dtype=dtype)
    folders = [str(tmp_path / f"q-{n}") for n in ("a-fp32", "a-bf16", "b-fp32")]
    settings = Settings(prompts=(8,), gens=(4,), rounds=1, threads=1)
    _, run = bench(folders, runtimes=["mlx"], against=str(tmp_path / "a"), settings=settings)
    assert [r.verdict for r in run.rows] == ["pass", "pass", "fail"]
    assert run.rows[2].checks[0]["name"] == "weights" and not run.rows[2].verified


def test_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 3_000_000)
    seen = []
    export_mlx(load(STDLIB), tmp_path / "m", progress=lambda done, total: seen.append((done, total)))
    names = sorted(f.name for f in (tmp_path / "m").glob("*.safetensors"))
    assert len(names) >= 4 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert seen[-1][0] == seen[-1][1]
    ids = random_ids(4096, 20)
    sharded = lm_logits(tmp_path / "m", ids, 10)
    monkeypatch.undo()
    export_mlx(load(STDLIB), tmp_path / "one")
    assert np.array_equal(sharded, lm_logits(tmp_path / "one", ids, 10))
    assert load(tmp_path / "m").weights.dtypes() == {"BF16"}


def test_refusals(tmp_path):
    loaded, _ = saved(small_spec(), tmp_path / "m")
    with pytest.raises(ExportError, match="precision '7bit'"):
        export_mlx(loaded, tmp_path / "x", precision="7bit")
    with pytest.raises(ExportError, match="group size 48"):
        export_mlx(loaded, tmp_path / "x", precision="4bit", group_size=48)
    with pytest.raises(ExportError, match="--dtype applies only to"):
        export_mlx(loaded, tmp_path / "x", precision="fp16", dtype="bf16")
    from edgeformer.api import export

    with pytest.raises(InputError, match="export to mlx has no option target"):
        export(loaded, tmp_path / "x", to="mlx", target="cpu")
    assert not (tmp_path / "x").exists()
    bert, _ = load_tiny(
        tmp_path / "bert", "bert", hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=50
    )
    with pytest.raises(ExportError, match="decoders only"):
        export_mlx(bert, tmp_path / "x")
    notes = export_mlx(loaded, tmp_path / "y", precision="4bit", group_size=64).notes
    assert any("not quantized" in n for n in notes)  # hidden 24 and width 32 are no multiples


def test_damaged_quantized_folders(tmp_path):
    export_mlx(load(STDLIB), tmp_path / "q", precision="4bit")
    file = tmp_path / "q" / "config.json"
    config = json.loads(file.read_text())
    for change, message in (
        ({"group_size": 48}, "not affine quantization"),
        ({"mode": "mxfp4"}, "biases, which MLX's mode mxfp4 doesn't have"),
        ({"mode": "mxfp3"}, "mode 'mxfp3'"),
        ({"mode": []}, "mode \\[\\]"),
    ):
        entry = {**config["quantization"], **change}
        file.write_text(json.dumps({**config, "quantization": entry, "quantization_config": entry}))
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "q")


def test_why_a_spec_is_not_stock():
    for change, reason in (
        ({"softcap": 5.0}, "attention.softcap = 5.0 (none there)"),
        ({"clip": 2.0}, "attention.clip = 2.0 (none there)"),
        ({"output_bias": True}, "attention.output_bias = True (False there)"),
    ):
        found, why = stock_type(small_spec(**change))
        assert found is None and reason in why
    spec = small_spec()
    spec = replace(spec, blocks=tuple(replace(b, ffn=replace(b.ffn, act="relu")) for b in spec.blocks))
    assert "ffn.act = relu (silu there)" in stock_type(spec)[1]
    assert (
        "gemma, which differs in blocks.*.ffn.act = gelu_tanh (gelu there)"
        in stock_type(load("gemma-2b").spec, "gemma")[1]
    )
    granite, _ = stock_type(small_spec(scale=0.5, head_dim=8, position=Rope(dim=8)))
    assert granite is not None and granite.name == "granite"


def test_manifest(tmp_path):
    made = export_mlx(load(STDLIB), tmp_path / "m", precision="8bit")
    manifest = bundle.read_manifest(tmp_path / "m")
    assert manifest["format"] == "mlx" and manifest["compute"] == "bf16" and manifest["precision"] == "8bit-g64"
    assert bundle.read_spec(tmp_path / "m") == load(STDLIB).spec
    assert not (tmp_path / "m" / "spec.json").exists()  # its names would not be the folder's
    assert len(made.notes) == 1 and "--dtype fp16" in made.notes[0]  # bf16 scales are as coarse as eight-bit codes
    assert export_mlx(load(STDLIB), tmp_path / "n", precision="8bit", dtype="fp16").notes == []


def test_verify_where_rotation_depends_on_the_length(tmp_path):
    """What is cached keeps the rotation of its own step, so the cached rung is judged by a run in the same steps."""
    from edgeformer.layers.rope import Rope
    from edgeformer.layers.rope_dynamic import DynamicScaling

    spec = small_spec(position=Rope(dim=16, scaling=DynamicScaling(factor=4.0, original_context=16)))
    loaded, _ = saved(spec, tmp_path / "m", scale=1.0)
    session = require("numpy")[0].open(loaded, Options())
    ids = random_ids(31, 1, 40)
    one_pass = session.forward(ids)
    session.reset()
    for i in range(40):
        steps = session.forward(ids[:, i : i + 1])
    assert np.abs(one_pass - steps).max() > 1e-3  # the two do differ
    export_onnx(loaded, tmp_path / "onnx")
    made = export_mlx(loaded, tmp_path / "mlx", precision="fp32")
    assert any("prefills in chunks" in note for note in made.notes)
    for folder, runtime in (("onnx", "onnxruntime"), ("mlx", "mlx"), ("mlx", "mlx_lm")):
        assert verify(tmp_path / folder, loaded, runtime=runtime, length=40, generate=8).verdict == "pass", runtime
