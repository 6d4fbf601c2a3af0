"""Encoders and encoder–decoder models in llama.cpp: hidden states, embeddings and logits, in padded batches and cached steps.

Oracle: transformers in float32; GELU, which ggml looks up in a table of fp16 values, and approximates where the model has the
exact one, by the tolerance of that.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from encoder_cases import encoder_settings, pair_settings
from support import load_tiny, random_ids, record_errors

from edgeformer import discover, load
from edgeformer.api import export, verify
from edgeformer.cli import cli
from edgeformer.errors import ArtefactError, CheckpointError, ExportError, InputError
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options
from edgeformer.layers.pooling import Pooling
from edgeformer.quantization.run import quantize
from edgeformer.verification.parity import encoder_inputs
from edgeformer.verification.verdict import NEAR_TIE, PASS
from edgeformer.weights.formats import QuantizedTensor
from edgeformer.weights.gguf_file import Draft

pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
runs = pytest.mark.skipif(get("llama_cpp")[0].unavailable() is not None, reason="llama-cpp-python is not installed")
ENCODERS = {
    "bert": ("bert", {}),
    "bert@relu-3-types": ("bert", dict(type_vocab_size=3, hidden_act="gelu_new")),
    "roberta": ("bert", dict(pad_token_id=5, type_vocab_size=1)),
    "xlm_roberta": ("bert", {}),
    "camembert": ("bert", {}),
    "distilbert": ("bert", {}),
    "modernbert": ("modern-bert", dict(num_hidden_layers=6, local_attention=10)),
    "modernbert@silu-two-thetas": (
        "modern-bert",
        dict(hidden_activation="silu", global_attn_every_n_layers=2, local_rope_theta=500.0, local_attention=16),
    ),
}
_EVEN = dict(
    num_decoder_layers=2, decoder_start_token_id=0
)  # llama.cpp loads no decoder with more blocks than its encoder
PAIRS = {
    "t5": {},
    "t5@gated-untied": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": {},
}


def encoder(case, folder):
    family, _, config = case.partition("@")[0], *ENCODERS[case]
    base = "roberta" if family in ("xlm_roberta", "camembert") else family
    name = family.replace("_", "-") if family == "xlm_roberta" else family
    return load_tiny(folder / "hf", name, auto="AutoModel", **encoder_settings(base, config))


def pair(case, folder):
    family = case.partition("@")[0]
    return load_tiny(folder / "hf", family, auto="AutoModelForSeq2SeqLM", **pair_settings(family, _EVEN | PAIRS[case]))


@runs
@pytest.mark.parametrize("case", ENCODERS)
def test_an_encoder(case, tmp_path):
    """Rows of different lengths, padded on either side, in one batch; read back as what llama.cpp computes."""
    loaded, hf = encoder(case, tmp_path)
    done = export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)
    assert done.manifest["target"] == ENCODERS[case][0]
    inputs = encoder_inputs(loaded.spec, 48)
    if (padding := hf.config.pad_token_id) is not None:  # transformers' RoBERTa takes padding from the ids
        inputs["input_ids"] = np.where(inputs["attention_mask"] == 1, np.maximum(inputs["input_ids"], 6), padding)
    wanted = {i.name for i in loaded.spec.inputs()}
    with torch.no_grad():
        tensors = {k: torch.from_numpy(v) for k, v in inputs.items() if k in wanted}
        expected = hf(**tensors).last_hidden_state.numpy()
    session = require("llama_cpp")[0].open(tmp_path / "g", Options(batch=3, threads=1))
    found = session.encode(inputs)
    assert set(found) == {"last_hidden_state"}
    real = inputs["attention_mask"].astype(bool)
    worst = float(np.abs(found["last_hidden_state"] - expected)[real].max())
    record_errors("gguf", case, {done.manifest["target"]: worst})
    again = load(tmp_path / "g" / "model.gguf")
    ours = require("numpy")[0].open(again, Options()).encode(inputs)["last_hidden_state"]
    real[2] = False  # left-padded: BERT counts positions over padding, RoBERTa doesn't
    there = float(np.abs(ours - expected)[real].max())
    assert worst <= 1e-2 and there <= 5e-3
    longer = session.encode(encoder_inputs(loaded.spec, 200))["last_hidden_state"]  # a larger context
    assert longer.shape[1] == 200 and np.isfinite(longer).all()


@runs
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_an_embedder(mode, tmp_path):
    """llama.cpp pools as the file says; the vector equals the original's."""
    loaded, _ = encoder("bert@relu-3-types", tmp_path)
    embedder = replace(loaded, spec=replace(loaded.spec, pooling=Pooling(mode=mode)))
    done = export(embedder, tmp_path / "g", to="gguf", no_tokenizer=True)
    assert any("pooler" in note for note in done.notes)
    inputs = encoder_inputs(loaded.spec, 40)
    found = require("llama_cpp")[0].open(tmp_path / "g", Options(batch=3)).encode(inputs)
    rows = slice(2) if mode == "cls" else slice(3)  # the third begins with padding, where the first token isn't one
    expected = require("numpy")[0].open(embedder, Options()).encode(inputs)
    assert set(found) == {"sentence_embedding"}
    assert np.abs(found["sentence_embedding"] - expected["sentence_embedding"])[rows].max() <= 2e-3
    alone = tmp_path / "alone.gguf"
    (tmp_path / "g" / "model.gguf").rename(alone)
    assert load(alone).spec.pooling == Pooling(mode=mode)


@runs
@pytest.mark.parametrize("case", PAIRS)
def test_an_encoder_decoder(case, tmp_path):
    """A source longer than one batch of a decoder, then the answer in one pass and in single steps."""
    loaded, hf = pair(case, tmp_path)
    done = export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)
    assert done.manifest["target"] == "t5"
    read, ids = random_ids(97, 600, seed=3)[None], random_ids(97, 40)[None]
    with torch.no_grad():
        expected = hf(input_ids=torch.from_numpy(read), decoder_input_ids=torch.from_numpy(ids)).logits.numpy()
    session = require("llama_cpp")[0].open(tmp_path / "g", Options(capacity=64))
    session.source(read)
    whole = session.forward(ids, all_positions=True)
    session.source(read[:, :50])
    session.source(read)
    steps = [session.forward(ids[:, :10])] + [session.forward(ids[:, i : i + 1]) for i in range(10, 40)]
    scale = float(np.abs(expected).max())
    worst = max(np.abs(whole - expected).max(), np.abs(np.stack(steps, 1) - expected[:, 9:]).max())
    record_errors("gguf", case, {"t5": float(worst)})
    assert worst <= (1e-3 * scale + 2e-3 if case != "t5" else 1e-4 + 1e-5 * scale)
    with torch.no_grad():
        theirs = hf.generate(torch.from_numpy(read[:, :30]), max_new_tokens=12, do_sample=False, num_beams=1)[0, 1:]
    asked = ["--ids", ",".join(map(str, read[0, :30])), "-n", "12", "--json"]
    for runtime in ("llama_cpp", "numpy"):
        made = CliRunner().invoke(cli, ["generate", str(tmp_path / "g"), "--runtime", runtime, *asked])
        ours = json.loads(made.output)["ids"]
        assert ours and ours == theirs.tolist()[: len(ours)], (runtime, made.output)
    again = require("numpy")[0].open(load(tmp_path / "g" / "model.gguf"), Options())
    again.source(read)
    assert np.abs(again.forward(ids, all_positions=True) - expected).max() <= 1e-4 + 1e-5 * scale


@runs
@pytest.mark.parametrize("case", ["bert", "modernbert", "t5", "mt5"])
def test_the_same_codes(case, tmp_path):
    sizes = dict(d_model=64, d_kv=32, d_ff=96) if case in PAIRS else dict(hidden_size=96, intermediate_size=128)
    if case in PAIRS:
        config = pair_settings(case, _EVEN | PAIRS[case] | sizes)
        loaded, _ = load_tiny(tmp_path / "hf", case, auto="AutoModelForSeq2SeqLM", **config)
    else:
        loaded, _ = load_tiny(tmp_path / "hf", case, auto="AutoModel", **encoder_settings(case, sizes))
    quantize(loaded, tmp_path / "q", format="q4")
    export(load(tmp_path / "q"), tmp_path / "g", to="gguf", no_tokenizer=True)
    ours, found = load(tmp_path / "q").require_weights(), load(tmp_path / "g" / "model.gguf").require_weights()
    kept = [n for n in found if isinstance(found.sources[n].stored, QuantizedTensor)]
    assert len(kept) >= 12
    for name in kept:
        if name == "head.weight" and name not in ours.sources:  # a copy of the tied embedding
            continue
        pairs = zip(ours.sources[name].stored.quantized(), found.sources[name].stored.quantized(), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs), name
    report = verify(tmp_path / "g", against=tmp_path / "q", length=32, generate=4)
    assert report.verdict in (PASS, NEAR_TIE), report


@runs
def test_batches_of_every_size(tmp_path):
    """More rows than llama.cpp's sequences, and rows without a token."""
    loaded, _ = encoder("bert@relu-3-types", tmp_path)
    embedder = replace(loaded, spec=replace(loaded.spec, pooling=Pooling()))
    export(embedder, tmp_path / "g", to="gguf", no_tokenizer=True)
    inputs = {k: np.concatenate([v[:2]] * 150) for k, v in encoder_inputs(loaded.spec, 8).items()}
    expected = require("numpy")[0].open(embedder, Options()).encode(inputs)["sentence_embedding"]
    for batch in (1, 300):
        session = require("llama_cpp")[0].open(tmp_path / "g", Options(batch=batch))
        assert np.abs(session.encode(inputs)["sentence_embedding"] - expected).max() <= 2e-3
    inputs["attention_mask"][3] = 0
    with pytest.raises(InputError, match="row 3 is all padding"):
        session.encode(inputs)


@runs
@pytest.mark.parametrize("case", ["bert", "t5"])
def test_a_context_that_cannot_be_opened(case, tmp_path, monkeypatch):
    """One error, then the session goes on or says so again; nothing is freed twice."""
    loaded, _ = encoder(case, tmp_path) if case == "bert" else pair(case, tmp_path)
    export(loaded, tmp_path / "g", to="gguf", no_tokenizer=True)
    session = require("llama_cpp")[0].open(tmp_path / "g", Options(capacity=None if case == "bert" else 64))

    def run(inputs):
        return session.encode(inputs) if case == "bert" else session.source(inputs["input_ids"][:1])

    run(encoder_inputs(loaded.spec, 20))
    with monkeypatch.context() as patch:
        patch.setattr(session.llama, "llama_init_from_model", lambda *_: None)
        with pytest.raises(ArtefactError, match="can't open a context"):
            run(encoder_inputs(loaded.spec, 200, rows=6))
        with pytest.raises(ArtefactError, match=r"no context|can't open a context"):
            run(encoder_inputs(loaded.spec, 20))
    run(encoder_inputs(loaded.spec, 220, rows=6))


@pytest.mark.parametrize(
    ("architecture", "changes", "tensors", "message"),
    [
        ("bert", {"attention.causal": True}, {}, "an encoder's attention is bidirectional"),
        ("bert", {"attention.head_count": 7}, {}, "not a multiple of the 7 heads"),
        ("bert", {"attention.layer_norm_epsilon": 1e-3}, {}, "DistilBERT's is 1e-12"),
        ("modern_bert", {"hidden_activation": "relu"}, {}, "hidden_activation is 'relu'"),
        ("modern_bert", {"rope.scaling.type": "yarn"}, {}, "RoPE scaling 'yarn'"),
        (
            "modern_bert",
            {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True]},
            {},
            "1 entries for 2 layers",
        ),
        (
            "modern_bert",
            {"attention.sliding_window": 8, "attention.sliding_window_pattern": "x"},
            {},
            "must be an integer",
        ),
        ("modern_bert", {"attention.sliding_window": 8, "rope.freq_base_swa": 0.0}, {}, "must be positive"),
        ("t5", {"decoder_start_token_id": -1}, {}, "must be a token's id"),
        ("t5", {"attention.value_length": 8}, {}, "the same heads and channels"),
    ],
)
def test_what_contradicts_itself(architecture, changes, tensors, message):
    module = discover.find("edgeformer.checkpoint.gguf_archs", architecture)
    metadata = {
        "block_count": 2, "context_length": 64, "embedding_length": 96, "feed_forward_length": 128, "attention.causal": False,
        "attention.head_count": 6, "attention.key_length": 16, "attention.value_length": 16, "vocab_size": 97,
        "attention.layer_norm_epsilon": 1e-12, "attention.layer_norm_rms_epsilon": 1e-6, "attention.relative_buckets_count": 32,
    }  # fmt: skip
    draft = Draft(
        module.ARCHITECTURE.called or architecture, metadata | changes, {"token_embd.weight": (97, 96)} | tensors, {}
    )
    with pytest.raises(CheckpointError, match=message):
        module.ARCHITECTURE.config(draft)


def test_what_has_no_place_is_refused(tmp_path):
    deeper, _ = load_tiny(tmp_path / "t5", "t5", auto="AutoModelForSeq2SeqLM", **pair_settings("t5", {}))
    with pytest.raises(ExportError, match=r"the nearest is t5: llama\.cpp loads no decoder with more blocks"):
        export(deeper, tmp_path / "g", to="gguf", no_tokenizer=True)
    masked, _ = load_tiny(tmp_path / "mlm", "bert", auto="AutoModelForMaskedLM", **encoder_settings("bert", {}))
    with pytest.raises(ExportError, match=r"the nearest is bert, which differs in mlm = mlm_head \(none there\)"):
        export(masked, tmp_path / "g", to="gguf", no_tokenizer=True)
    albert, _ = load_tiny(tmp_path / "albert", "albert", auto="AutoModel", **encoder_settings("albert", {}))
    with pytest.raises(ExportError, match="the nearest is bert"):
        export(albert, tmp_path / "g", to="gguf", no_tokenizer=True)
