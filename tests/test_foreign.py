"""Checkpoints quantized by other tools, written to their published layouts with loops of their own, or by the tools themselves.

Oracle: transformers with the weights that the codes stand for, computed in float64; the tools' own dequantization where they are
installed.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tolerances
from support import hf_logits, random_ids

from edgeformer import load
from edgeformer.api import export
from edgeformer.errors import CheckpointError, ConfigError
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.weights import foreign
from edgeformer.weights.foreign._groups import ForeignTensor
from edgeformer.weights.formats import QuantizedTensor
from edgeformer.weights.parts import stacked
from edgeformer.weights.safetensors_file import read_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from foreign_cases import CASES, LLAMA, RNG, edit, gptq, grouped, made, packed_words, weights_of  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


@pytest.mark.parametrize("case", CASES)
def test_read_as_what_the_codes_stand_for(case, tmp_path):
    config, (settings, encode), kept = CASES[case]
    model, values = made(tmp_path / "m", config, settings, encode)
    loaded, ids = load(tmp_path / "m"), random_ids(97, 40)
    weights = loaded.require_weights()
    found = weights.sources["layers.0.attention.q.weight"].stored
    assert isinstance(found, QuantizedTensor) == (kept is not None)
    value = values["model.layers.0.self_attn.q_proj.weight"]
    assert np.abs(weights["layers.0.attention.q.weight"] - value).max() <= 1e-7 * np.abs(value).max()
    ours = require("numpy")[0].open(loaded, Options()).forward(ids[None], all_positions=True)[0]
    assert np.abs(ours - hf_logits(model, ids)).max() <= tolerances.FAMILY
    assert sum(settings["quant_method"] in note.lower() and "codes of" in note for note in loaded.notes) == 1
    assert "quantization_config" not in loaded.config
    made_of = export(loaded, tmp_path / "o").manifest
    assert made_of["precision"] == (kept or "fp32")


@pytest.mark.parametrize("size", [32, 160])
def test_codes_that_are_kept_go_to_every_format(size, tmp_path):
    """A group of 160 is five groups of 32 with one scale. Oracle: the codes that the file holds."""
    pytest.importorskip("gguf")
    config = LLAMA | dict(hidden_size=160, num_attention_heads=10)
    made(tmp_path / "m", config, *gptq(size=size))
    loaded = load(tmp_path / "m")
    name = "layers.1.ffn.up.weight"
    codes, scales = loaded.require_weights().sources[name].stored.quantized()
    raw = weights_of(tmp_path / "m")
    stored = raw["model.layers.1.mlp.up_proj.qweight"].view(np.uint32)
    assert np.array_equal(np.ascontiguousarray(stored.T).view(np.uint8), codes)
    assert np.array_equal(scales, np.repeat(raw["model.layers.1.mlp.up_proj.scales"].T, size // 32, 1))
    for to in ("onnx", "gguf"):
        export(loaded, tmp_path / to, to=to, **(dict(no_tokenizer=True) if to == "gguf" else {}))
        again = load(tmp_path / to).require_weights().sources[name].stored.quantized()
        assert np.array_equal(again[0], codes) and np.array_equal(again[1], scales)


@pytest.mark.parametrize("file, case", [("quantize_config.json", "gptq-4"), ("quant_config.json", "awq")])
def test_settings_in_a_file_of_their_own(file, case, tmp_path):
    config, (settings, encode), _ = CASES[case]
    made(tmp_path / "m", config, settings, encode)
    edit(tmp_path / "m", quantization_config=None)
    old = {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"} if case == "awq" else settings
    (tmp_path / "m" / file).write_text(json.dumps({k: v for k, v in old.items() if k != "quant_method"}))
    assert any("codes of" in note for note in load(tmp_path / "m").notes)


@pytest.mark.parametrize("method", ["quanto", "hqq", "../gptq", "_groups", 3, None])
def test_other_methods_are_refused_by_name(method, tmp_path):
    made(tmp_path / "m", LLAMA, *gptq())
    edit(tmp_path / "m", quantization_config={"quant_method": method})
    with pytest.raises(ConfigError, match="quantized by") as found:
        load(tmp_path / "m")
    assert str(method) in str(found.value) and "gptq" in str(found.value)


def damage(folder, change):
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


Q = "model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    "case, change, message",
    [
        ("gptq-4", lambda t: t.pop(Q + "scales"), "q_proj.scales is missing"),
        ("gptq-4", lambda t: t.update({Q + "scales": t[Q + "scales"].int()}), "of type I32"),
        ("gptq-order", lambda t: t[Q + "g_idx"].fill_(99), "beyond the 3 that have scales"),
        ("gptq-4", lambda t: t[Q + "scales"].fill_(math.nan), "nan"),
        ("gptq-8", lambda t: t.update({Q + "qzeros": t[Q + "qzeros"][:1]}), "qzeros is"),
        ("awq", lambda t: t.update({Q + "qweight": t[Q + "qweight"][:-1]}), "groups of its 95 inputs"),
        ("packed-4", lambda t: t[Q + "weight_shape"].fill_(7), "doesn't hold 2, 4 or 8 bits"),
        ("packed-8", lambda t: t.pop(Q + "weight_shape"), "weight_shape is missing"),
        ("fp8-blocks", lambda t: t.pop(Q + "weight_scale_inv"), "no weight_scale_inv"),
        ("fp8-blocks", lambda t: t.update({Q + "weight_scale_inv": torch.ones(5, 5)}), "scales \\[5, 5\\]"),
        ("int8", lambda t: t.update({Q + "SCB": t[Q + "SCB"][:4]}), "scales \\[4\\]"),
        ("nf4", lambda t: t[Q + "weight.quant_state.bitsandbytes__nf4"].fill_(123), "is not JSON"),
        ("nf4-nested", lambda t: t.pop(Q + "weight.nested_quant_map"), "nested_quant_map is missing"),
        ("nvfp4", lambda t: t.pop(Q + "weight_global_scale"), "weight_global_scale is missing"),
    ],
)
def test_damaged_pieces_are_one_error(case, change, message, tmp_path):
    config, (settings, encode), _ = CASES[case]
    made(tmp_path / "m", config, settings, encode)
    damage(tmp_path / "m", change)
    with pytest.raises(CheckpointError, match=message):
        loaded = load(tmp_path / "m")
        loaded.require_weights()["layers.0.attention.q.weight"]


def test_compressed_tensors_own_files(tmp_path):
    """Written by the library's compressors. Oracle: their own decompression, with scales in float32."""
    library = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    values = {}

    def encode(path, weight):
        bits, symmetric = (8, True) if "down" in path else (4, "self_attn" in path)
        args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=32)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        _, scale, zero, _ = grouped(weight, bits, 32, symmetric=symmetric, half=np.float32)
        zero = zero - (1 << (bits - 1))
        state = {"weight": torch.from_numpy(weight).float(), "weight_scale": torch.from_numpy(scale)}
        state["weight_zero_point"] = torch.from_numpy(zero.astype(np.int8))
        compressor = BaseCompressor.get_value_from_registry("pack-quantized")
        made = compressor.compress(state, scheme)
        values[path] = compressor.decompress(made, scheme)["weight"].double().numpy()
        return {f"{path}.{k}": v for k, v in made.items()}, values[path]

    assert library.__version__
    model, _ = made(tmp_path / "m", LLAMA, dict(quant_method="compressed-tensors", format="pack-quantized"), encode)
    loaded, ids = load(tmp_path / "m"), random_ids(97, 40)
    ours = require("numpy")[0].open(loaded, Options()).forward(ids[None], all_positions=True)[0]
    assert np.abs(ours - hf_logits(model, ids)).max() <= tolerances.FAMILY
    assert isinstance(
        loaded.require_weights().sources["layers.0.attention.o.weight"].stored, ForeignTensor
    )  # float32 scales


@pytest.mark.parametrize("kind, nested", [("nf4", False), ("nf4", True), ("fp4", True)])
def test_bitsandbytes_own_files(kind, nested, tmp_path):
    """Written by the library. Oracle: its tables and formula, in float64."""
    library = pytest.importorskip("bitsandbytes")

    def encode(path, weight):
        codes, state = library.functional.quantize_4bit(
            torch.from_numpy(weight).float(), blocksize=64, quant_type=kind, compress_statistics=nested
        )
        largest = state.absmax
        if nested:
            largest = library.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        both = codes.reshape(-1).numpy()
        table = state.code.double().numpy()
        flat = table[np.stack([both >> 4, both & 15], -1).reshape(-1)].reshape(-1, 64)
        value = (flat * largest.double().numpy()[:, None]).reshape(weight.shape)
        assert np.abs(value - weight).max() <= 0.3 * np.abs(weight).max()  # the library quantized this weight
        pieces = {f"{path}.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
        return {f"{path}.weight": codes, **pieces}, value

    model, _ = made(tmp_path / "m", LLAMA, dict(quant_method="bitsandbytes", load_in_4bit=True), encode)
    loaded, ids = load(tmp_path / "m"), random_ids(97, 40)
    ours = require("numpy")[0].open(loaded, Options()).forward(ids[None], all_positions=True)[0]
    assert np.abs(ours - hf_logits(model, ids)).max() <= tolerances.FAMILY


def stored(folder, **tensors):
    folder.mkdir(exist_ok=True)
    save_file({name.replace("__", "."): t for name, t in tensors.items()}, folder / "model.safetensors")
    return read_checkpoint(folder)


def test_a_zero_of_zero_borrows_from_its_neighbour(tmp_path):
    """GPTQModel takes 1 off all zeros of a word at once. Oracle: code - zero, with the zeros before that."""
    zeros = np.array([[0, 3, 0, 15, 1, 8, 0, 2]])
    word = (packed_words(zeros, 4).numpy().view(np.uint32) - np.uint32(0x11111111)).view(np.int32)
    codes = RNG.integers(0, 16, (8, 32))
    made_of = dict(
        a__qweight=packed_words(codes, 4).T.contiguous(),
        a__qzeros=torch.from_numpy(word),
        a__scales=torch.ones(1, 8).half(),
    )
    joined = foreign.reader({"quant_method": "gptq"}, "m")(stored(tmp_path / "m", **made_of), {"bits": 4}, "m")
    assert np.array_equal(joined.tensors["a.weight"].read(), codes - zeros.T)


def test_experts_of_which_one_is_unquantized(tmp_path):
    """A stack of fp16 and float32 is float32."""
    found = stored(tmp_path / "m", a=torch.ones(2, 2).half(), b=torch.full((2, 2), 1e6))
    whole = stacked([found["a"], found["b"]], flat=False)
    assert whole.read().dtype == np.float32 and whole.read()[1].max() == 1e6


@pytest.mark.parametrize(
    "settings, tensors",
    [
        (dict(quant_method="mxfp4"), dict(x_blocks=torch.zeros(16).byte(), x_scales=torch.zeros(()).byte())),
        (
            dict(quant_method="compressed-tensors"),
            dict(a__weight=torch.zeros(()).char(), a__weight_scale=torch.ones(2, 2)),
        ),
        (
            dict(quant_method="compressed-tensors"),
            dict(a__weight_packed=torch.zeros(2, 4).byte(), a__weight_scale=torch.zeros(2, 16).byte()),
        ),
        (
            dict(quant_method="compressed-tensors", config_groups={"g": {"weights": {"num_bits": 7}}}),
            dict(
                a__weight_packed=torch.zeros(2, 8).int(),
                a__weight_scale=torch.ones(2, 1),
                a__weight_shape=torch.tensor([2, 32]),
            ),
        ),
    ],
)
def test_odd_shapes_are_one_error(settings, tensors, tmp_path):
    with pytest.raises(CheckpointError):
        foreign.reader(settings, "m")(stored(tmp_path / "m", **tensors), settings, "m")


def test_sizes_in_settings_are_bounded(tmp_path):
    """Blocks larger than a weight are the whole weight, and take no memory of their own."""
    found = stored(
        tmp_path / "m", a__weight=torch.ones(256, 64).to(torch.float8_e4m3fn), a__weight_scale_inv=torch.ones(2, 1)
    )
    settings = {"quant_method": "fp8", "weight_block_size": [128, 10**30]}
    joined = foreign.reader(settings, "m")(found, settings, "m")
    assert np.array_equal(joined.tensors["a.weight"].read(), np.ones((256, 64)))
    plain = stored(tmp_path / "n", weight_packed=torch.zeros(2, 2).int())
    assert foreign.reader({"quant_method": "compressed-tensors"}, "n")(plain, {}, "n").tensors == plain
