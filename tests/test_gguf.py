"""GGUF: every family that llama.cpp has, run by llama.cpp; read back; tokenizers; what is refused.

Where llama-cpp-python is not installed (it is built from source), what needs it is skipped; `.ci/run` installs it.
"""

from pathlib import Path

import numpy as np
import pytest
from family_cases import TINY
from support import STDLIB, hf_logits, load_tiny, random_ids, saved, small_spec

from edgeformer import load
from edgeformer.api import export, verify
from edgeformer.errors import CheckpointError, ConfigError, EdgeformerError, ExportError
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options
from edgeformer.quantization.run import quantize
from edgeformer.weights.formats import QUANTIZED, QuantizedTensor

gguf = pytest.importorskip("gguf")
runs = pytest.mark.skipif(get("llama_cpp")[0].unavailable() is not None, reason="llama-cpp-python is not installed")
GPT2 = {
    "n_embd": 48,
    "n_head": 4,
    "n_layer": 2,
    "vocab_size": 97,
    "n_positions": 256,
    "n_inner": 100,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": ("llama", TINY),
    "llama-biases": (
        "llama",
        TINY | {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "tie_word_embeddings": True},
    ),
    "llama-llama3": (
        "llama",
        TINY
        | {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama-linear": ("llama", TINY | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama-yarn": (
        "llama",
        TINY | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
    "mistral": ("mistral", TINY | {"sliding_window": None}),
    "mistral-wide-window": ("mistral", TINY | {"sliding_window": 4096, "head_dim": 12}),
    "qwen2": ("qwen2", TINY | {"hidden_size": 48}),
    "qwen3": ("qwen3", TINY | {"head_dim": 16}),
    "gpt2": ("gpt2", GPT2),
}


def exported(loaded, folder: Path, **options):
    return export(loaded, folder, to="gguf", no_tokenizer=True, **options)


@pytest.mark.parametrize("case", FAMILIES)
def test_read_back(tmp_path, case):
    """What is written is read again as the same architecture with the same numbers."""
    family, config = FAMILIES[case]
    loaded, _ = load_tiny(tmp_path / "m", family, **config)
    exported(loaded, tmp_path / "g")
    again = load(tmp_path / "g" / "model.gguf")
    weights, found = loaded.require_weights(), again.require_weights()
    assert all(np.array_equal(weights[name], found[name]) for name in weights)
    ids = random_ids(97, 1, 40)
    sessions = [require("numpy")[0].open(m, Options()) for m in (loaded, again)]
    a, b = (s.forward(ids, all_positions=True) for s in sessions)
    assert np.abs(a - b).max() < 1e-5


@runs
@pytest.mark.parametrize("case", FAMILIES)
def test_llama_cpp_runs_every_family(tmp_path, case):
    """The oracle is transformers, 160 positions, in one pass and token by token.

    llama.cpp looks GELU up in a table of fp16 values (ggml_gelu), so gpt2 is compared at fp16's limit.
    """
    family, config = FAMILIES[case]
    loaded, model = load_tiny(tmp_path / "m", family, **config)
    exported(loaded, tmp_path / "g")
    ids = random_ids(97, 160)
    session = require("llama_cpp")[0].open(tmp_path / "g", Options(capacity=160))
    expected = hf_logits(model, ids)
    allowed = 1e-2 + 5e-3 * np.abs(expected).max() if family == "gpt2" else 1e-4 + 1e-5 * np.abs(expected).max()
    assert np.abs(session.forward(ids[None], all_positions=True)[0] - expected).max() <= allowed
    session.reset()
    steps = [session.forward(ids[None, :100])[0]]
    steps += [session.forward(ids[None, i : i + 1])[0] for i in range(100, 160)]
    assert np.abs(np.stack(steps) - expected[99:]).max() <= allowed


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_same_bits(tmp_path, name):
    """Blocks are read with the package `gguf` alone: dequantized, they are our numbers, bit for bit."""
    quantize(load(STDLIB), tmp_path / "q", format=name)
    export(load(tmp_path / "q"), tmp_path / "g", to="gguf")
    checkpoint, again = load(tmp_path / "q").require_weights(), load(tmp_path / "g").require_weights()
    count = 0
    for tensor, source in checkpoint.sources.items():
        if isinstance(source.stored, QuantizedTensor):
            for ours, theirs in zip(source.stored.quantized(), again.sources[tensor].stored.quantized(), strict=True):
                assert np.array_equal(ours, theirs), tensor
            count += 1
    assert count > 20
    reader = gguf.GGUFReader(str(tmp_path / "g" / "model.gguf"))
    table = next(t for t in reader.tensors if t.name == "token_embd.weight")
    assert np.array_equal(gguf.quants.dequantize(table.data, table.tensor_type), checkpoint["embed.weight"])
    assert {t.tensor_type.name for t in reader.tensors} == {"F32", {"q4": "Q4_0", "q8": "Q8_0"}[name]}


@runs
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "q4", "q8"])
def test_trained_weights(tmp_path, precision):
    export(load(STDLIB), tmp_path / "g", to="gguf", precision=precision)
    verdict = verify(tmp_path / "g", STDLIB, length=96, generate=32)
    assert verdict.runtime == "llama_cpp"
    assert verdict.verdict in ("pass", "near-tie")


def refused(expected: str, function, *arguments, kind: type = EdgeformerError, **options):
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    assert expected in str(caught.value)


def test_specs_without_an_architecture_are_refused(tmp_path):
    from edgeformer.layers.mask import Mask

    for change, reason in (
        ({"softcap": 30.0}, "attention.softcap = 30.0"),
        ({"mask": Mask(window=8)}, "attention.mask.window = 8"),
        ({"clip": 0.5, "bias": True}, "attention.clip = 0.5"),
    ):
        loaded, _ = saved(small_spec(**change), tmp_path / "m")
        refused("no architecture of llama.cpp", exported, loaded, tmp_path / "g", kind=ExportError)
        refused(reason, exported, loaded, tmp_path / "g", kind=ExportError)


def test_k_quants_are_refused_by_name(tmp_path):
    loaded, _ = load_tiny(tmp_path / "m", "llama", **TINY | {"hidden_size": 48})
    exported(loaded, tmp_path / "g")
    file = tmp_path / "g" / "model.gguf"
    reader = gguf.GGUFReader(str(file))
    target = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    kinds = gguf.GGMLQuantizationType
    data = bytearray(file.read_bytes())
    offset = target.field.parts[-2].ctypes.data - reader.data.ctypes.data  # its type's place in the file
    assert int.from_bytes(data[offset : offset + 4], "little") == kinds.F32
    data[offset : offset + 4] = int(kinds.TQ1_0).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"TQ1_0 \(1 tensors\)|can't be read as a GGUF"):
        load(file)


def test_files_that_are_no_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(60))
    refused("can't be read", load, tmp_path / "x.gguf")
    (tmp_path / "y.gguf").write_bytes(b"hello")
    refused("can't be read as a GGUF file", load, tmp_path / "y.gguf", kind=CheckpointError)


def test_unknown_keys_are_refused(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    for key, value in {
        "block_count": 1,
        "context_length": 8,
        "embedding_length": 32,
        "feed_forward_length": 32,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_uint32("llama.attention.sliding_window", 4)
    writer.add_tensor("token_embd.weight", np.zeros((10, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(
        "keys that edgeformer doesn't support: llama.attention.sliding_window",
        load,
        tmp_path / "x.gguf",
        kind=ConfigError,
    )
