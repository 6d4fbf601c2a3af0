"""q4 and q8: the codec against llama.cpp's package `gguf`, and the same bits in every file that holds them."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import STDLIB, saved, small_spec

from edgeformer import load
from edgeformer.api import build_torch, export, verify
from edgeformer.errors import CheckpointError, EdgeformerError, ExportError, InputError
from edgeformer.quantization.run import quantize
from edgeformer.weights import formats
from edgeformer.weights.formats import QUANTIZED, dequantize, pack, unpack
from edgeformer.weights.safetensors_file import read_checkpoint
from edgeformer.weights.scales import searched

FORMATS = list(QUANTIZED.values())


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 300.0])
def test_nearest_is_ggufs(format, scale):
    """The oracle is llama.cpp's own quantizer: equal codes and equal scales."""
    gguf = pytest.importorskip("gguf")
    kind = {"q4": gguf.GGMLQuantizationType.Q4_0, "q8": gguf.GGMLQuantizationType.Q8_0}[format.name]
    x = (np.random.default_rng(0).standard_normal((96, 320)) * scale).astype(np.float32)
    x[3, :32], x[4, 32:64] = 0, np.float32(-1.5)
    codes, scales = formats.quantize(x, format)
    blocks = gguf.quants.quantize(x, kind).reshape(-1, 2 + 32 * format.bits // 8)
    assert np.array_equal(
        blocks[:, :2].copy().view(np.float16)[:, 0].view(np.uint16), scales.reshape(-1).view(np.uint16)
    )
    body = blocks[:, 2:]
    theirs = np.concatenate([body & 15, body >> 4], 1) if format.bits == 4 else body ^ 0x80
    assert np.array_equal(theirs.reshape(x.shape), unpack(codes, format))


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_packing(format):
    codes = np.random.default_rng(0).integers(0, 1 << format.bits, (5, 64), dtype=np.uint8)
    packed = pack(codes, format)
    assert packed.shape == format.packed_shape(codes.shape)
    assert np.array_equal(unpack(packed, format), codes)
    assert np.array_equal(formats.flip_sign(formats.flip_sign(packed, format), format), packed)


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_dequantized_numbers_are_exact(format):
    """The oracle is float64: scale · (code − zero) has few enough bits for float32, for every code and any fp16 scale."""
    scales = np.random.default_rng(0).integers(0, 0x7C00, (256, 1), dtype=np.uint16).view(np.float16)
    for start in range(0, 1 << format.bits, 32):
        codes = np.tile(np.minimum(np.arange(start, start + 32), format.high).astype(np.uint8), (256, 1))
        exact = scales.astype(np.float64) * (codes.astype(np.float64) - format.zero)
        assert np.array_equal(dequantize(pack(codes, format), scales, format).astype(np.float64), exact)


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_search_is_never_worse(format):
    """Group by group, in the squares it minimises, with and without importances; and much better on average."""
    rng = np.random.default_rng(1)
    groups = (rng.standard_normal((500, 32)) * rng.uniform(0.001, 3, (500, 1))).astype(np.float32)
    groups[0] = 0
    for importance in (None, rng.uniform(0.1, 10, (500, 32)).astype(np.float32)):
        weights = 1 if importance is None else importance
        errors = []
        for rounding in (formats.nearest, lambda g, f, i=importance: searched(g, f, i)):
            codes, scales = rounding(groups, format)
            held = scales.astype(np.float16).astype(np.float64)[:, None]
            errors.append(((held * (codes.astype(float) - format.zero) - groups) ** 2 * weights).sum(1))
        assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
        assert errors[1].sum() < errors[0].sum() * 0.99


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantized")
    for method in ("rtn", "search"):
        for format in QUANTIZED:
            quantize(load(STDLIB), folder / f"{format}-{method}", format=format, method=method)
    return {p.name: p for p in folder.iterdir() if not p.name.startswith(".")}


def onnx_bits(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Codes and scales as the ONNX file has them, read with the `onnx` package alone."""
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)  # it refuses hard links
    raw = {}
    for t in model.graph.initializer:
        entry = {e.key: e.value for e in t.external_data}
        if entry:
            place = folder / entry["location"]
            raw[t.name] = np.fromfile(place, np.uint8, int(entry["length"]), offset=int(entry["offset"]))
    scales = {n.removesuffix(".scales"): x.view(np.float16) for n, x in raw.items() if n.endswith(".scales")}
    return {name: (raw[name], found) for name, found in scales.items()}


@pytest.mark.parametrize("method", ["rtn", "search"])
@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_the_same_bits_in_every_file(checkpoints, tmp_path, format, method):
    """Checkpoint, ONNX (copied, linked, portable) and MLX folder, each read by its own format's reader."""
    mx = pytest.importorskip("mlx.core")
    checkpoint = checkpoints[f"{format.name}-{method}"]
    stored = read_checkpoint(checkpoint)
    ours = {}
    for name, source in load(checkpoint).require_weights().sources.items():
        if name + ".scales" in stored:
            ours[name] = source.stored.quantized()
    assert len(ours) > 20
    for name, options in {"cpu": {}, "link": {"weights": "link"}, "portable": {"target": "portable"}}.items():
        made = export(load(checkpoint), tmp_path / name, **options)
        assert made.manifest["precision"] == format.name
        bits = onnx_bits(tmp_path / name)
        assert bits.keys() == ours.keys()
        for tensor, (codes, scales) in ours.items():
            raw = formats.flip_sign(bits[tensor][0], format) if name == "portable" else bits[tensor][0]
            assert np.array_equal(raw.reshape(codes.shape), codes), tensor
            assert np.array_equal(bits[tensor][1].reshape(scales.shape).view(np.uint16), scales.view(np.uint16)), tensor
        again = load(tmp_path / name).require_weights()
        assert all(np.array_equal(again[n], dequantize(*ours[n], format)) for n in ours)
    for dtype in ("fp16", "fp32"):
        export(load(checkpoint), tmp_path / dtype, to="mlx", dtype=dtype)
        arrays = mx.load(str(tmp_path / dtype / "model.safetensors"))
        from edgeformer.exporters.mlx.exporter import stock_type

        found, _ = stock_type(load(checkpoint).spec)
        assert found is not None
        seen = 0
        for stored_name, ((_, canonical), *more) in found.stored.items():
            if canonical not in ours:
                continue
            assert not more
            path, (codes, scales) = stored_name.removesuffix(".weight"), ours[canonical]
            theirs = {k: arrays[f"{path}.{k}"] for k in ("weight", "scales", "biases")}
            assert np.array_equal(np.array(theirs["weight"]).view(np.uint8), codes)
            assert np.array_equal(np.array(theirs["scales"].astype(mx.float16)), scales)
            in_fp32 = {k: v if k == "weight" else v.astype(mx.float32) for k, v in theirs.items()}
            numbers = mx.dequantize(
                in_fp32["weight"], in_fp32["scales"], in_fp32["biases"], group_size=32, bits=format.bits
            )
            assert np.array_equal(np.array(numbers), dequantize(codes, scales, format))
            if dtype == "fp16":  # MLX's own, which rounds the product and the sum to fp16
                own = mx.dequantize(*theirs.values(), group_size=32, bits=format.bits)
                largest = np.abs(scales.astype(np.float32)).repeat(32, -1) * format.high
                off = np.abs(np.array(own.astype(mx.float32)) - dequantize(codes, scales, format))
                assert (off <= largest * 2.0**-10 + 2.0**-24).all()
            seen += 1
        assert seen == len(ours)


def test_the_package_is_the_function(tmp_path):
    import edgeformer

    made = edgeformer.quantize(STDLIB, tmp_path / "q", format="q8", method="rtn")
    assert made.manifest["precision"] == "q8"


def test_a_tied_table_is_stored_once(checkpoints, tmp_path):
    made = export(load(checkpoints["q4-rtn"]), tmp_path / "o")
    model = onnx.load(str(tmp_path / "o" / "model.onnx"), load_external_data=False)
    places = {t.name: [e.value for e in t.external_data] for t in model.graph.initializer if "embed.weight" in t.name}
    assert places["embed.weight"] == places["embed.weight.blocks"]
    assert made.manifest["quantization"]["bits_per_weight"] < 4.6


def test_exporting_rounds_to_the_bits_that_quantize_stores(checkpoints, tmp_path):
    export(load(STDLIB), tmp_path / "o", precision="q4")
    export(load(checkpoints["q4-rtn"]), tmp_path / "c")
    a, b = onnx_bits(tmp_path / "o"), onnx_bits(tmp_path / "c")
    assert all(np.array_equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))


@pytest.mark.parametrize("precision", ["q4", "q8"])
@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_logits_are_those_of_the_same_bits(tmp_path, precision, target):
    """The oracle is the dequantized checkpoint in torch's float32."""
    exact = {"accuracy_level": 0} if target == "cpu" else {}
    export(load(STDLIB), tmp_path / "o", precision=precision, target=target, **exact)
    verdict = verify(tmp_path / "o", STDLIB, length=64, generate=24)
    assert verdict.verdict == "pass"
    assert [c.name for c in verdict.checks] == ["weights", "full", "cached", "greedy", "tokenizer", "stop"]
    assert all(c.max_abs <= 1e-3 for c in verdict.checks if c.max_abs is not None)


def test_q8_on_the_cpu_rounds_activations_by_default(tmp_path):
    """Where ONNX Runtime has no fast kernel for 8 bits; said in a note and in the manifest, and not done to q4 or elsewhere."""
    made = {
        (precision, target): export(
            load(STDLIB), tmp_path / f"{precision}-{target}", precision=precision, target=target
        )
        for precision, target in (("q8", "cpu"), ("q4", "cpu"), ("q8", "webgpu"), ("q8", "web"))
    }
    levels = {key: m.manifest["quantization"]["accuracy_level"] for key, m in made.items()}
    assert levels == {("q8", "cpu"): 4, ("q4", "cpu"): 0, ("q8", "webgpu"): 0, ("q8", "web"): 0}
    assert any("--accuracy-level 0 is exact" in note for note in made["q8", "cpu"].notes)
    assert not any("accuracy level" in note for note in made["q4", "cpu"].notes)
    assert verify(tmp_path / "q8-cpu", STDLIB, length=64, generate=24).verdict in ("pass", "near_tie")


def test_half_precision_activations(tmp_path):
    made = export(load(STDLIB), tmp_path / "o", precision="q4f16")
    assert (made.manifest["precision"], made.manifest["compute"]) == ("q4f16", "fp16")
    assert verify(tmp_path / "o", STDLIB, length=64, generate=8).verdict == "pass"


def test_a_changed_code_is_seen(checkpoints, tmp_path):
    """One code of one tensor off by one, in the artefact: the weights' check says which tensor."""
    export(load(checkpoints["q8-search"]), tmp_path / "o")
    model = onnx.load(str(tmp_path / "o" / "model.onnx"), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "layers.1.ffn.down.weight")
    offset = int(next(e.value for e in tensor.external_data if e.key == "offset"))
    with (tmp_path / "o" / "model.onnx.data").open("r+b") as f:
        f.seek(offset + 5)
        byte = f.read(1)[0]
        f.seek(offset + 5)
        f.write(bytes([byte ^ 1]))
    for against in (checkpoints["q8-search"], STDLIB):
        verdict = verify(tmp_path / "o", str(against), length=32, generate=4)
        weights = verdict.checks[0]
        assert (verdict.verdict, weights.verdict) == ("fail", "fail")
        assert "layers.1.ffn.down.weight" in weights.note


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    from edgeformer.quantization.partial import PartialFile

    real, count = PartialFile.write, 0

    def stops(self, tensors):
        nonlocal count
        count += 1
        if count > 7:
            raise KeyboardInterrupt
        real(self, tensors)

    loaded = load(STDLIB)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PartialFile, "write", stops)
        quantize(loaded, tmp_path / "q")
    assert not (tmp_path / "q").exists()
    made = quantize(loaded, tmp_path / "q")
    assert "resumed with 7 tensors" in made.notes[0]
    quantize(loaded, tmp_path / "whole")
    assert (tmp_path / "q" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_other_settings_begin_again(tmp_path, monkeypatch):
    from edgeformer.quantization.partial import PartialFile

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PartialFile, "read", None)
        real = PartialFile.write
        patch.setattr(
            PartialFile, "write", lambda self, t: (real(self, t), (_ for _ in ()).throw(KeyboardInterrupt))[0]
        )
        quantize(load(STDLIB), tmp_path / "q", method="rtn")
    assert quantize(load(STDLIB), tmp_path / "q", method="search").notes == []


def test_kept_tensors(tmp_path):
    made = quantize(load(STDLIB), tmp_path / "q", keep=["embed.*", "layers.0.*"])
    kept = made.manifest["quantization"]["kept"]
    assert "embed.weight" in kept and "layers.0.ffn.up.weight" in kept and "layers.1.ffn.up.weight" not in kept
    for to in ("onnx", "mlx"):
        export(load(tmp_path / "q"), tmp_path / to, to=to)
        assert verify(tmp_path / to, str(tmp_path / "q"), length=32, generate=4).verdict == "pass"


def refused(expected: str, function, *arguments, kind: type = EdgeformerError, **options):
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    assert expected in str(caught.value)


def test_refusals(checkpoints, tmp_path):
    q4, plain = load(checkpoints["q4-rtn"]), load(STDLIB)
    refused("already quantized (q4)", quantize, q4, tmp_path / "a", kind=CheckpointError)
    refused("rounded twice", export, q4, tmp_path / "a", precision="q8", kind=CheckpointError)
    refused("rounded twice", export, q4, tmp_path / "a", to="mlx", precision="q8", kind=CheckpointError)
    refused("round it twice", export, q4, tmp_path / "a", to="mlx", precision="4bit", kind=ExportError)
    refused("bf16 can't represent", export, q4, tmp_path / "a", to="mlx", dtype="bf16", kind=ExportError)
    refused("a fixed group size of 32", export, q4, tmp_path / "a", to="mlx", group_size=64, kind=ExportError)
    refused(
        "`edgeformer quantize` first", export, plain, tmp_path / "a", precision="q4", weights="link", kind=ExportError
    )
    refused("unknown precision 'q5'", export, plain, tmp_path / "a", precision="q5", kind=ExportError)
    refused(
        "--accuracy-level must be 0", export, plain, tmp_path / "a", precision="q4", accuracy_level=2, kind=ExportError
    )
    refused("unknown quantization method", quantize, plain, tmp_path / "a", method="magic", kind=InputError)
    refused("matches no quantizable tensor", quantize, plain, tmp_path / "a", keep=["nothing.*"], kind=InputError)
    refused("is quantized (q4)", build_torch, q4, kind=CheckpointError)
    assert build_torch(q4, dequantize=True) is not None
    assert not (tmp_path / "a").exists()


def test_a_group_that_does_not_divide(tmp_path):
    loaded, _ = saved(small_spec(), tmp_path / "m")  # its FFN has 24 channels
    refused(
        "24 inputs, which is not a multiple of the group size 32",
        quantize,
        loaded,
        tmp_path / "q",
        kind=CheckpointError,
    )
    refused("--keep", export, loaded, tmp_path / "q", precision="q4", kind=CheckpointError)
    quantize(loaded, tmp_path / "q", keep=["*.ffn.down.weight"])
    export(load(tmp_path / "q"), tmp_path / "o")
    assert verify(tmp_path / "o", str(tmp_path / "q"), length=24, generate=4).verdict == "pass"


def test_weights_that_no_scale_holds(tmp_path):
    loaded, weights = saved(small_spec(), tmp_path / "m")
    name = "layers.0.attention.q.weight"
    for value, message in ((np.inf, "holds inf"), (1e9, "too large for an fp16 scale")):
        from edgeformer.checkpoint import saving

        changed = weights[name].copy()
        changed[0, 0] = value
        saving.save(loaded.spec, {**weights, name: changed}, tmp_path / "bad")
        refused(
            message, quantize, load(tmp_path / "bad"), tmp_path / "q", keep=["*.ffn.down.weight"], kind=CheckpointError
        )


def test_a_damaged_quantized_checkpoint(checkpoints, tmp_path):
    import shutil

    shutil.copytree(checkpoints["q4-rtn"], tmp_path / "q")
    file = tmp_path / "q" / "model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    entry = header["layers.0.attention.q.weight.scales"]
    entry["shape"] = [entry["shape"][0] // 2, entry["shape"][1] * 2]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    refused("have U8 codes and one F16 scale", load, tmp_path / "q", kind=CheckpointError)
