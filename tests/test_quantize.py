"""Choosing codes: GPTQ, AWQ, mixed formats, and what quality says of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support import STDLIB, load_tiny, random_ids, saved, small_spec

from edgeformer import load
from edgeformer.checkpoint import saving
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.errors import ArtefactError, EdgeformerError, InputError
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.layers.block import Block
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.mlp import MLP
from edgeformer.layers.parallel_block import ParallelBlock
from edgeformer.quantization import run
from edgeformer.quantization.calibration import Calibration, calibration_windows
from edgeformer.quantization.folding import sites
from edgeformer.quantization.sensitivity import mixed, units
from edgeformer.runtimes.torch import build_torch
from edgeformer.spec import tensors
from edgeformer.verification.quality import Settings, measure, score, windows
from edgeformer.weights.formats import QUANTIZED, dequantize, quantize
from edgeformer.weights.scales import by_channel

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def text() -> tuple[np.ndarray, np.ndarray]:
    """Ids to calibrate on (the standard library's own source, which the model was trained on) and ids held out from both."""
    import sysconfig

    held_out = (STDLIB / "validation.txt").read_text(encoding="utf-8")
    tokenizer = read_tokenizer(STDLIB)
    library = Path(sysconfig.get_paths()["stdlib"])
    parts = [(library / f"{name}.py").read_text(encoding="utf-8") for name in ("argparse", "typing", "ast", "tarfile")]
    assert not any(part[:2000] in held_out for part in parts)
    ids = np.array(tokenizer.encode("\n".join(parts)))
    return calibration_windows(ids, 256, 64, 1024, 4096), np.array(tokenizer.encode(held_out[:40_000]))


@pytest.fixture(scope="module")
def made(text, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("methods")
    for method in ("rtn", "search", "gptq", "awq"):
        run.quantize(load(STDLIB), folder / method, method=method, ids=text[0])
    run.quantize(load(STDLIB), folder / "q8", format="q8", method="search")
    return {p.name: p for p in folder.iterdir()}


@pytest.mark.slow
def test_calibrated_methods_are_better(text, made):
    """On text that neither training nor calibration saw: GPTQ at least a quarter better than rounding to nearest in KL, AWQ and
    the search in between; q8 within 1e-4 nats."""
    names = ["rtn", "search", "gptq", "awq", "q8"]
    rows = measure([made[n] for n in names], load(STDLIB), text[1], settings=Settings(tokens=6144))
    kl = dict(zip(names, (r.against.kl_mean for r in rows[1:]), strict=True))
    assert kl["gptq"] <= 0.75 * kl["rtn"]
    assert kl["gptq"] < kl["awq"] < kl["search"] < kl["rtn"]
    assert kl["q8"] <= 1e-4
    assert all(r.runtime_error.kl_mean == 0 and r.runtime_error.flips == 0 for r in rows[1:])  # torch is the reference
    assert rows[0].against.perplexity < min(r.against.perplexity for r in rows[1:5])
    assert {round(r.bits_per_weight, 1) for r in rows[1:5]} == {4.5}


@pytest.mark.parametrize("method", ["rtn", "search", "gptq", "awq"])
def test_every_method_keeps_its_bits(made, tmp_path, method):
    """Exports don't know how codes were chosen: what each file holds is the checkpoint's, bit for bit."""
    from edgeformer.api import export
    from edgeformer.verification.weight_checks import check_weights

    for name, options in {
        "onnx": {},
        "portable": {"target": "portable"},
        "gguf": {"to": "gguf"},
        "mlx": {"to": "mlx"},
    }.items():
        export(load(made[method]), tmp_path / name, **options)
        check = check_weights(load(tmp_path / name), load(made[method]))
        assert (check.verdict, check.note) == ("pass", "the same codes and scales"), name


def test_runtime_error_is_told_apart(text, made, tmp_path):
    """ONNX Runtime multiplying dequantized weights adds nothing; with activations rounded to int8 it does, and that is shown."""
    from edgeformer.api import export

    for level in (0, 4):
        export(load(made["gptq"]), tmp_path / str(level), accuracy_level=level)
    settings = Settings(tokens=1024)
    rows = measure([tmp_path / "0", tmp_path / "4"], load(STDLIB), text[1], settings=settings)
    exact, rounded = (r.runtime_error for r in rows[1:])
    assert exact.kl_mean < 1e-8 and exact.flips == 0
    assert 1e-6 < rounded.kl_mean < 1e-2
    assert rows[1].facts["quantization"]["accuracy_level"] == 0
    cached = measure(
        [tmp_path / "0"], load(STDLIB), text[1][:128], settings=Settings(tokens=128, window=64, cached=True)
    )
    assert cached[1].runtime_error.kl_mean < 1e-8


def test_scores_against_float64():
    """The oracle is written out: softmax, logarithms and sums in float64."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, 2, 5, 7)).astype(np.float32)
    ids = rng.integers(0, 7, (2, 5))
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(-1, keepdims=True) for x in (theirs, ours))
    kl = (p * np.log(p / q)).sum(-1)
    nll = -np.log([q[n, t, ids[n, t + 1]] for n in range(2) for t in range(4)])
    found = score(ours, theirs, ids)
    assert found.kl_mean == pytest.approx(kl.mean())
    assert found.kl_max == pytest.approx(kl.max())
    assert found.perplexity == pytest.approx(np.exp(np.mean(nll)))
    assert found.flips == int((p.argmax(-1) != q.argmax(-1)).sum())
    assert found.top1 == pytest.approx(1 - found.flips / 10)


def test_gptq_against_its_objective(text):
    """What GPTQ minimises, tr((W − Ŵ) H (W − Ŵ)ᵀ), is smaller than with the same scales and plain rounding, for every map."""
    from edgeformer.quantization.methods.gptq import gptq

    loaded, format = load(STDLIB), QUANTIZED["q4"]
    calibration = Calibration(loaded, text[0][:16])
    path, block = next(iter(calibration.blocks()))
    moments = calibration.second_moments(block, ["attention.q", "attention.o", "ffn.down"])
    for name, h in moments.items():
        weight = np.asarray(loaded.require_weights()[f"{path}.{name}.weight"]).astype(np.float32)
        codes = gptq(weight, h, format, name)
        plain = quantize(weight, format, by_channel(h.diagonal().numpy()))
        assert np.array_equal(codes[1], plain[1])
        losses = []
        for found in (codes, plain):
            change = dequantize(*found, format).astype(np.float64) - weight
            losses.append(np.einsum("ok,kj,oj->", change, h.double().numpy(), change))
        assert losses[0] < 0.9 * losses[1], name


def test_second_moments_are_the_inputs():
    """The oracle is the definition, from inputs caught by hand in another pass."""
    loaded = load(STDLIB)
    ids = random_ids(4096, 3, 32)
    whole, caught = build_torch(loaded), []
    with torch.no_grad():
        whole.get_submodule("layers.1.ffn.down").register_forward_pre_hook(lambda _, a: caught.append(a[0]))
        whole(torch.from_numpy(ids))
    calibration = Calibration(loaded, ids)
    blocks = calibration.blocks()
    next(blocks)
    _, second = next(blocks)
    found = calibration.second_moments(second, ["ffn.down"])["ffn.down"]
    rows = caught[0].reshape(-1, caught[0].shape[-1]).double()
    expected = rows.T @ rows / len(rows)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def specs():
    norm = LayerNorm()
    attention = GQA(heads=4, kv_heads=2, head_dim=16, bias=True, output_bias=True)
    yield "llama", small_spec()
    relu = Block(attention=attention, ffn=MLP(hidden=64, act="relu"), norm=norm)
    gelu = Block(attention=attention, ffn=MLP(hidden=64, act="gelu"), norm=norm)
    parallel = ParallelBlock(attention=attention, ffn=GLU(hidden=64, bias=True), norm=norm, shared_norm=True)
    apart = ParallelBlock(attention=attention, ffn=MLP(hidden=64, act="relu"), norm=norm)
    for name, block in (("relu", relu), ("gelu", gelu), ("parallel", parallel), ("apart", apart)):
        base = small_spec()
        yield name, type(base)(vocab=31, width=32, context=64, blocks=(block,) * 2, norm=norm)


@pytest.mark.parametrize("spec", [s for _, s in specs()], ids=[n for n, _ in specs()])
@pytest.mark.parametrize("exact", [True, False], ids=["powers of two", "any"])
def test_folds_change_nothing(tmp_path, spec, exact):
    """Every site of a spec, folded with random scales: the same logits, bit for bit with powers of two, else within 1e-5."""
    loaded, weights = saved(spec, tmp_path / "m")
    rng, folded = np.random.default_rng(1), dict(weights)
    found = sites(spec)
    assert len(found) >= 4
    for site in found:
        channels = len(folded[site.source[0]])
        scale = np.exp(rng.uniform(-2, 2, channels)).astype(np.float32)
        if exact:
            scale = (2.0 ** np.round(np.log2(scale))).astype(np.float32)
        folded |= site.divided({name: folded[name] for name in site.source}, scale)
        for name in site.consumers:
            folded[name] = folded[name] * site.spread(scale)
    saving.save(spec, folded, tmp_path / "f")
    ids = random_ids(31, 1, 40)
    a, b = (
        require("numpy")[0].open(m, Options()).forward(ids, all_positions=True)[0]
        for m in (loaded, load(tmp_path / "f"))
    )
    if exact:
        assert np.array_equal(a, b)
    else:
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


def test_awq_with_powers_of_two_keeps_norms_exact(text, tmp_path):
    made = run.quantize(load(STDLIB), tmp_path / "q", method="awq", ids=text[0][:8], options={"powers_of_two": True})
    weights, original = load(tmp_path / "q").require_weights(), load(STDLIB).require_weights()
    for name in ("layers.0.attention_norm.weight", "layers.3.ffn_norm.weight"):
        ratio = np.asarray(original[name]).astype(np.float32) / weights[name]
        assert np.array_equal(ratio, 2.0 ** np.round(np.log2(ratio)))
        assert weights[name].dtype == np.float32
    assert made.manifest["quantization"]["method"] == "awq"


def test_a_calibrated_run_that_was_stopped_goes_on(text, tmp_path, monkeypatch):
    """The bits are those of a run that wasn't."""
    from edgeformer.quantization.partial import PartialFile

    ids, real, count = text[0][:4], PartialFile.write, 0
    for method, pieces, finished in (("gptq", 16, 16), ("awq", 3, 3 * 9)):  # awq writes block by block
        run.quantize(load(STDLIB), tmp_path / f"{method}-whole", method=method, ids=ids)
        count = 0

        def stops(self, arrays, pieces=pieces):
            nonlocal count
            count += 1
            if count > pieces:
                raise KeyboardInterrupt
            real(self, arrays)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(PartialFile, "write", stops)
            run.quantize(load(STDLIB), tmp_path / method, method=method, ids=ids)
        resumed = run.quantize(load(STDLIB), tmp_path / method, method=method, ids=ids)
        assert f"resumed with {finished} tensors" in resumed.notes[0]
        files = [tmp_path / name / "model.safetensors" for name in (method, f"{method}-whole")]
        assert files[0].read_bytes() == files[1].read_bytes(), method


def test_mixed_keeps_its_budget(text, tmp_path):
    loaded = load(STDLIB)
    formats, chosen = mixed(loaded, text[0], 5.5)
    sizes = {name: np.prod(shape) for name, shape in tensors(loaded.spec).items()}
    bits = sum(sizes[n] * f.bits_per_weight for n, f in formats.items()) / sum(sizes[n] for n in formats)
    assert 5.3 < bits <= 5.5
    assert all(len({formats[n].name for n in group}) == 1 for group in units(loaded))
    per_weight = [u.harm / u.weights for u in chosen]
    assert per_weight == sorted(per_weight, reverse=True)
    assert chosen[0].format == "q8"
    for budget in (4.4, 9.0):
        with pytest.raises(InputError, match=r"outside 4\.5"):
            mixed(loaded, text[0], budget)


def test_other_families_calibrate(tmp_path):
    """Biases, LayerNorm, learned positions; an encoder's post-norm blocks."""
    decoder = {"n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 97, "n_positions": 128, "initializer_range": 0.2}
    encoder = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 96}
    for family, config in (("gpt2", decoder), ("bert", encoder | {"vocab_size": 97})):
        loaded, _ = load_tiny(tmp_path / family, family, **config)
        for method in ("gptq", "awq"):
            run.quantize(loaded, tmp_path / f"{family}-{method}", method=method, ids=random_ids(97, 4, 32))
            assert load(tmp_path / f"{family}-{method}").weights is not None


def refused(expected: str, function, *arguments, kind: type = EdgeformerError, **options):
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    assert expected in str(caught.value)


def test_the_manifest_lists_files_below_folders(tmp_path):
    """Every file with its size, and no folder: several chat templates lie in a folder of their own."""
    source = tmp_path / "m"
    shutil.copytree(STDLIB, source)
    templates = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    (source / "chat_template.jinja").write_text(templates["default"])
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text(templates["tool_use"])
    listed = run.quantize(load(source), tmp_path / "q", method="rtn").manifest["files"]
    assert listed["additional_chat_templates/tool_use.jinja"] == len(templates["tool_use"])
    assert all((tmp_path / "q" / name).is_file() for name in listed)


def test_refusals(text, made, tmp_path):
    loaded = load(STDLIB)
    refused("needs calibration text", run.quantize, loaded, tmp_path / "q", method="gptq", kind=InputError)
    refused("fewer than one window of 64", calibration_windows, np.arange(10), 64, 4, 1024, 4096, kind=InputError)
    refused("vocabulary ends at 99", calibration_windows, np.arange(200), 64, 4, 1024, 100, kind=InputError)
    refused("needs at least 2", windows, np.arange(1), Settings(), 1024, kind=InputError)
    other, _ = saved(small_spec(), tmp_path / "m")
    refused("another architecture", measure, [made["rtn"]], other, text[1], kind=ArtefactError)
    refused("none of mlx_lm opens", measure, [made["rtn"]], loaded, text[1], runtimes=["mlx_lm"], kind=InputError)


def test_a_corrupt_calibration_text(tmp_path):
    from click.testing import CliRunner

    from edgeformer.cli import cli

    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00broken")
    (tmp_path / "empty.txt").write_text("")
    for name, message in (("bad.txt", "is not UTF-8 text"), ("empty.txt", "empty.txt is empty")):
        arguments = ["quantize", str(STDLIB), "-o", str(tmp_path / "q"), "--calibration", str(tmp_path / name)]
        result = CliRunner().invoke(cli, arguments)
        assert isinstance(result.exception, InputError) and message in str(result.exception)
    result = CliRunner().invoke(cli, ["quantize", str(STDLIB), "-o", str(tmp_path / "q"), "--budget", "5"])
    assert "--calibration" in str(result.exception)
    assert not (tmp_path / "q").exists()
