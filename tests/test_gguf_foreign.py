"""GGUF files in llama.cpp's own quantized types: the values of the package gguf, and llama.cpp's logits."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from support import STDLIB, random_ids

import edgeformer
from edgeformer.checkpoint.loading import load
from edgeformer.errors import CheckpointError
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options
from edgeformer.verification.parity import kl_divergence
from edgeformer.weights.gguf_file import DEQUANTIZED, FOREIGN

gguf = pytest.importorskip("gguf")


def file_of(kind, folder, rng):
    """A GGUF file with stdlib-5m's metadata and tensors, of which those with whole blocks are of one quantized type."""
    made = edgeformer.export(STDLIB, folder / "plain", to="gguf", precision="fp32")
    reader = gguf.GGUFReader(str(made.folder / "model.gguf"))
    writer = gguf.GGUFWriter(str(folder / "k.gguf"), "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0], *field.types[1:2])
    kind = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    for tensor in reader.tensors:
        x = np.array(tensor.data)
        if x.ndim == 2 and x.shape[1] % block == 0:
            raw = rng.integers(0, 256, (x.shape[0], x.shape[1] // block * size), dtype=np.uint8)
            try:
                raw = gguf.quants.quantize(x.astype(np.float32), kind)
            except NotImplementedError:  # codes at random, whose scales are finite
                raw = raw & np.uint8(0x3B)
            writer.add_tensor(tensor.name, raw, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "k.gguf"


@pytest.mark.parametrize("kind", DEQUANTIZED)
def test_the_values_of_the_package_gguf(kind, tmp_path):
    """Bit for bit, for every type, with llama.cpp's order of rotated channels undone."""
    file = file_of(kind, tmp_path, np.random.default_rng(0))
    model = load(file)
    assert any(f"{kind} (" in note and "second time" in note for note in model.notes)
    assert FOREIGN + kind in model.weights.dtypes()
    tensors = {t.name: t for t in gguf.GGUFReader(str(file)).tensors}
    names = {"layers.0.ffn.gate.weight": "blk.0.ffn_gate.weight", "embed.weight": "token_embd.weight"}
    for ours, theirs in names.items():
        tensor = tensors[theirs]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(map(int, tensor.shape[::-1])))
        assert np.array_equal(np.asarray(model.weights[ours]), expected.astype(np.float32), equal_nan=True)


def test_what_is_exported_from_it(tmp_path):
    """Its values in fp32, which is the default: its bits are no choice of ours to be carried on."""
    file = file_of("Q5_0", tmp_path, np.random.default_rng(0))
    ids = random_ids(4096, 1, 16)
    expected = require("numpy")[0].open(load(file), Options()).forward(ids)
    for to in ("onnx", "gguf", "mlx"):
        made = edgeformer.export(file, tmp_path / to, to=to)
        assert made.manifest["precision"] == "fp32" and made.manifest.get("quantization") is None
    found = require("onnxruntime")[0].open(tmp_path / "onnx", Options()).forward(ids)
    assert np.abs(found - expected).max() <= 1e-4
    assert edgeformer.export(file, tmp_path / "q4", precision="q4").manifest["precision"] == "q4"


def test_quantized_again(tmp_path):
    """What q4 leaves alone is stored as float32."""
    file = file_of("Q5_0", tmp_path, np.random.default_rng(0))
    edgeformer.quantize(file, tmp_path / "q4", keep=["layers.0.*"])
    again = load(tmp_path / "q4")
    name = "layers.0.ffn.gate.weight"
    assert np.array_equal(np.asarray(again.weights[name]), np.asarray(load(file).weights[name]))


def test_integers_are_refused(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "i.gguf"), "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"I32 \(1 tensors\); edgeformer reads F32"):
        load(tmp_path / "i.gguf")


@pytest.mark.skipif(get("llama_cpp")[0].unavailable() is not None, reason="llama.cpp is not installed")
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q5_K_M", "Q6_K", "Q3_K_M", "Q4_1", "IQ4_NL", "IQ4_XS"])
def test_files_of_llama_cpps_quantizer(kind, tmp_path):
    """As most GGUF files are made. llama.cpp rounds activations to int8, so that its logits differ by that."""
    import llama_cpp
    from llama_cpp import llama_cpp as api

    made = edgeformer.export(STDLIB, tmp_path / "plain", to="gguf", precision="fp32")
    settings = api.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = getattr(api, f"LLAMA_FTYPE_MOSTLY_{kind}"), 1
    files = str(made.folder / "model.gguf").encode(), str(tmp_path / "k.gguf").encode()
    assert api.llama_model_quantize(*files, ctypes.byref(settings)) == 0
    model, ids = load(tmp_path / "k.gguf"), random_ids(4096, 48)
    tool = llama_cpp.Llama(str(tmp_path / "k.gguf"), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    tool.eval(ids.tolist())
    found = require("numpy")[0].open(model, Options()).forward(ids[None], all_positions=True)[0]
    assert kl_divergence(found, np.array(tool.scores)[:48]) < 1e-3
    assert model.notes
