"""Heads of encoders: every family and head against transformers, in every back end; folders and graphs that other tools read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tolerances
from encoder_cases import ENCODERS, encoder_settings
from support import load_tiny, random_ids, record_errors, saved, sessions, small_spec

from edgeformer import load
from edgeformer.api import build_torch, export, verify
from edgeformer.errors import CheckpointError, ConfigError, ExportError, SpecError
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.layers.pooling import Pooling
from edgeformer.layers.sequence_classifier import SequenceClassifier

pytest.importorskip("torch")
T = 40
HEADS = {
    "AutoModelForSequenceClassification": dict(num_labels=3),
    "AutoModelForTokenClassification": dict(num_labels=5),
    "AutoModelForQuestionAnswering": {},
}
FAMILIES = [*ENCODERS, "xlm-roberta", "camembert"]
CASES = [(m, auto, {}) for m in FAMILIES for auto in HEADS]
ODD = [
    ("modernbert", "AutoModelForSequenceClassification",
     dict(classifier_pooling="mean", classifier_bias=True, classifier_activation="relu", norm_bias=True)),
    ("modernbert", "AutoModelForTokenClassification", dict(classifier_bias=True, norm_bias=True)),
    ("roberta", "AutoModelForSequenceClassification", dict(num_labels=1, problem_type="regression")),
    ("bert", "AutoModelForSequenceClassification", dict(num_labels=7, problem_type="multi_label_classification")),
]  # fmt: skip


def made(folder, model_type, auto, more):
    base = {"xlm-roberta": "roberta", "camembert": "roberta"}.get(model_type, model_type)
    config = encoder_settings(base, next(iter(ENCODERS[base].values()))) | HEADS[auto] | more
    return load_tiny(folder, model_type, auto=auto, **config)


@pytest.mark.parametrize(("model_type", "auto", "more"), [*CASES, *ODD])
def test_head(model_type, auto, more, tmp_path):
    """Rows without padding and with padding on the right; the oracle is transformers on each row alone."""
    import torch

    loaded, hf = made(tmp_path / "hf", model_type, auto, more)
    ids = random_ids(80, 3, T) + 10
    mask = np.ones_like(ids)
    mask[1, T - 13 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in [i.name for i in loaded.spec.inputs()]:
        inputs["token_type_ids"] = random_ids(2, 3, T, seed=1)
    expected = []
    for row in range(3):
        with torch.no_grad():
            one = {k: torch.from_numpy(v[row][mask[row] == 1][None]) for k, v in inputs.items()}
            out = hf(**one)
        expected.append({k: out[k][0].numpy() for k in loaded.spec.outputs()})
    errors = {}
    for name, session in sessions(loaded, tmp_path).items():
        outputs = session.encode(inputs)
        assert set(outputs) == set(expected[0])
        for row, theirs in enumerate(expected):
            for key, wanted in theirs.items():
                ours = outputs[key][row]
                if "sequence_length" in loaded.spec.outputs()[key]:
                    ours = ours[mask[row] == 1]
                worst = float(np.abs(ours - wanted).max())
                errors[name] = max(errors.get(name, 0.0), worst)
                assert worst <= tolerances.FAMILY, f"{name}, {key}, row {row}: {worst:.2e}"
    odd = "" if not more else "@" + "-".join(map(str, more))
    record_errors("heads", f"{model_type}@{auto.removeprefix('AutoModel')}{odd}", errors)


@pytest.mark.parametrize(("model_type", "auto", "more"), [*CASES, *ODD])
def test_back_to_transformers(model_type, auto, more, tmp_path):
    """`export --to hf`: the class of the original loads every tensor, with its labels, to the same outputs."""
    import torch
    import transformers

    names = (
        {"id2label": {str(i): f"name {i}" for i in range(3)}} if HEADS[auto].get("num_labels") == 3 and not more else {}
    )
    loaded, hf = made(tmp_path / "hf", model_type, auto, more | names)
    export(loaded, tmp_path / "out", to="hf")
    kind = getattr(transformers, auto)
    again, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert type(again) is type(hf)
    assert again.config.id2label == hf.config.id2label
    assert again.config.problem_type == hf.config.problem_type
    ids = torch.from_numpy(random_ids(80, 1, T) + 10)
    with torch.no_grad():
        for key in loaded.spec.outputs():
            assert float((hf(ids)[key] - again.eval()(ids)[key]).abs().max()) < 2e-6
    assert load(tmp_path / "out").spec == loaded.spec


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({k: v for k, v in (json.loads(file.read_text()) | changes).items() if v is not None}))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_without_head(model_type, tmp_path):
    """The body alone, as transformers' bare class reads it; a note names what was left out."""
    import torch
    import transformers

    made(tmp_path / "hf", model_type, "AutoModelForSequenceClassification", {})
    loaded = load(tmp_path / "hf", without_head=True)
    assert loaded.spec.classifier is None
    assert any("a head, left out by --without-head" in note for note in loaded.notes)
    artefact = export(loaded, tmp_path / "o").folder
    assert json.loads((artefact / "config.json").read_text())["architectures"][0].endswith("Model")
    assert verify(artefact, loaded).verdict == "pass"
    hf = transformers.AutoModel.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    ids = random_ids(80, 1, T) + 10
    with torch.no_grad():
        expected = hf(torch.from_numpy(ids)).last_hidden_state.numpy()
    session = require("numpy")[0].open(loaded, Options())
    found = session.encode({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert np.abs(found["last_hidden_state"] - expected).max() <= tolerances.FAMILY


def test_a_head_is_never_dropped(tmp_path):
    """Tensors of a head that `architectures` doesn't name are an error, which says how to go on."""
    made(tmp_path / "hf", "bert", "AutoModelForSequenceClassification", {})
    for named in (["BertModel"], None):
        edit(tmp_path / "hf", architectures=named)
        with pytest.raises(
            CheckpointError,
            match=r"(?s)classifier\.weight.*is not the one that config\.json's architectures names; --without-head",
        ) as told:
            load(tmp_path / "hf")
        assert "not used by the spec" in str(told.value)
    edit(tmp_path / "hf", architectures=["BertForMultipleChoice"])
    with pytest.raises(ConfigError, match="names a class ForMultipleChoice, whose head edgeformer doesn't build"):
        load(tmp_path / "hf")
    assert load(tmp_path / "hf", without_head=True).spec.classifier is None
    for wrong in ("BertModel", [3]):
        edit(tmp_path / "hf", architectures=wrong)
        with pytest.raises(ConfigError, match="architectures must be a list of class names"):
            load(tmp_path / "hf")


@pytest.mark.parametrize(("changes", "error", "message"), [
    (dict(id2label={"0": "a", "1": "b"}), CheckpointError, r"classifier\.weight is \[3, 48\].* needs \[2, 48\]"),
    (dict(id2label={"0": "a", "2": "b"}), ConfigError, "must name the labels 0 to n - 1"),
    (dict(id2label=["a", "b"]), ConfigError, "must name the labels 0 to n - 1"),
    (dict(id2label={}), ConfigError, "must name the labels 0 to n - 1"),
    (dict(num_labels=3, id2label={"0": "a", "1": "b"}), ConfigError, "num_labels is 3, but id2label names 2"),
    (dict(num_labels=0, id2label=None), ConfigError, "num_labels must be a positive integer"),
    (dict(num_labels=2**40, id2label=None), ConfigError, "num_labels is 1099511627776; at most"),
    (dict(num_labels="3", id2label=None), ConfigError, "num_labels must be a positive integer"),
    (dict(id2label=None), CheckpointError, r"needs \[2, 48\]"),
])  # fmt: skip
def test_labels_that_do_not_fit(changes, error, message, tmp_path):
    made(tmp_path / "hf", "bert", "AutoModelForSequenceClassification", {})
    edit(tmp_path / "hf", label2id=None, **changes)
    with pytest.raises(error, match=message):
        load(tmp_path / "hf")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_body_of_an_untied_masked_token_model(model_type, tmp_path):
    """Its output map equals no tensor of the body, and is left out with the rest of the head."""
    base = {"xlm-roberta": "roberta", "camembert": "roberta"}.get(model_type, model_type)
    config = encoder_settings(base, next(iter(ENCODERS[base].values()))) | {"tie_word_embeddings": False}
    load_tiny(tmp_path, model_type, auto="AutoModelForMaskedLM", **config)
    assert load(tmp_path).spec.mlm is not None
    loaded = load(tmp_path, without_head=True)
    assert loaded.spec.mlm is None
    assert any(note.endswith("a head, left out by --without-head") for note in loaded.notes)


def test_without_a_head_to_leave_out(tmp_path):
    loaded = load(saved(small_spec(), tmp_path / "m")[0].folder, without_head=True)
    assert "--without-head had no effect: the model has no head that can be left out" in loaded.notes


@pytest.mark.parametrize("named", ["BertForSequenceClassification", "BertForCL"])
def test_a_body_under_the_name_of_a_head(named, tmp_path):
    """A checkpoint that stores no head loads, whatever class it was saved from."""
    load_tiny(tmp_path, "bert", auto="AutoModel", **encoder_settings("bert", {}))
    edit(tmp_path, architectures=[named])
    loaded = load(tmp_path)
    assert "last_hidden_state" in loaded.spec.outputs()
    assert any("no head is stored" in note for note in loaded.notes) == (named != "BertForCL")


def test_a_discriminator_of_electra(tmp_path):
    """Its head of pre-training is left out with a note, as BERT's next-sentence head; its config is no masked-token model."""
    load_tiny(tmp_path, "electra", auto="AutoModelForPreTraining", **encoder_settings("electra", {}))
    loaded = load(tmp_path)
    assert list(loaded.spec.outputs()) == ["last_hidden_state"]
    assert any("the discriminator's head of pre-training" in note for note in loaded.notes)
    assert load(tmp_path / "config.json").spec == loaded.spec


@pytest.mark.parametrize("pooling", ["max", "lasttoken", 3, None, ["cls", "mean"]])
def test_poolings_that_modernbert_does_not_have(pooling, tmp_path):
    made(tmp_path, "modernbert", "AutoModelForSequenceClassification", {})
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"classifier_pooling": pooling}))
    with pytest.raises(ConfigError, match="classifier_pooling must be 'cls' or 'mean'"):
        load(tmp_path)


@pytest.mark.parametrize("pool", [Pooling(mode="cls"), Pooling(mode=("cls", "max"), normalize=False)])
def test_a_classifier_pools_one_vector(pool):
    with pytest.raises(SpecError, match="pool must have one mode, and must not normalise"):
        SequenceClassifier(labels=2, pool=pool)


def test_an_embedder_with_a_head(tmp_path):
    from test_encoders import embedder

    made(tmp_path, "bert", "AutoModelForSequenceClassification", {})
    embedder(tmp_path, {"pooling_mode": "mean"})
    with pytest.raises(ConfigError, match=r"modules\.json makes this model an embedder, but .* --without-head takes"):
        load(tmp_path)
    assert list(load(tmp_path, without_head=True).spec.outputs()) == [
        "last_hidden_state",
        "pooler_output",
        "sentence_embedding",
    ]


def test_dropouts(tmp_path):
    """Read and written back; no probability is an error."""
    cases = [
        ("distilbert", "AutoModelForQuestionAnswering", "qa_dropout"),
        ("distilbert", "AutoModelForSequenceClassification", "seq_classif_dropout"),
        ("modernbert", "AutoModelForQuestionAnswering", "classifier_dropout"),
        ("albert", "AutoModelForSequenceClassification", "classifier_dropout_prob"),
        ("albert", "AutoModelForTokenClassification", "classifier_dropout_prob"),
        ("roberta", "AutoModelForTokenClassification", "classifier_dropout"),
    ]
    for n, (model_type, auto, key) in enumerate(cases):
        loaded, _ = made(tmp_path / f"{n}", model_type, auto, {key: 0.3})
        assert loaded.spec.classifier.dropout == 0.3
        folder = export(loaded, tmp_path / f"{n}-hf", to="hf").folder
        assert json.loads((folder / "config.json").read_text())[key] == 0.3
        edit(tmp_path / f"{n}", **{key: 5})
        with pytest.raises(SpecError, match="a dropout is a probability from 0 to 1, got 5"):
            load(tmp_path / f"{n}")


def test_a_cross_encoder_keeps_its_activation(tmp_path):
    made(tmp_path / "m", "bert", "AutoModelForSequenceClassification", {"num_labels": 1})
    own = {
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
    }
    edit(tmp_path / "m", **own)
    for to in ("onnx", "hf"):
        config = json.loads((export(load(tmp_path / "m"), tmp_path / to, to=to).folder / "config.json").read_text())
        assert own.items() <= config.items()


def test_labels_in_an_artefact(tmp_path):
    """Names from the checkpoint; numbered ones where old checkpoints have two default names beside the true number."""
    made(tmp_path / "hf", "bert", "AutoModelForSequenceClassification", {"id2label": {0: "no", 1: "maybe", 2: "yes"}})
    for to in ("onnx", "hf"):
        folder = export(load(tmp_path / "hf"), tmp_path / f"{to}-new", to=to).folder
        config = json.loads((folder / "config.json").read_text())
        assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
        assert config["label2id"] == {"no": 0, "maybe": 1, "yes": 2}
    edit(tmp_path / "hf", num_labels=3, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    for to in ("onnx", "hf"):
        folder = export(load(tmp_path / "hf"), tmp_path / f"{to}-old", to=to).folder
        config = json.loads((folder / "config.json").read_text())
        assert list(config["id2label"].values()) == list(config["label2id"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_quantized(tmp_path):
    """q8 of a classifier in ONNX Runtime against the reference on the dequantized weights."""
    loaded, _ = made(tmp_path / "hf", "bert", "AutoModelForSequenceClassification",
                     dict(hidden_size=64, num_attention_heads=4, intermediate_size=96))  # fmt: skip
    folder = export(loaded, tmp_path / "o", precision="q8", accuracy_level=0).folder
    assert verify(folder, loaded).verdict == "pass"


def test_training_goes_through_the_head(tmp_path):
    """Gradients reach every parameter, and dropout acts only while training."""
    import torch

    loaded, _ = made(tmp_path / "hf", "roberta", "AutoModelForSequenceClassification", {})
    model = build_torch(loaded)
    ids = torch.from_numpy(random_ids(80, 4, 12) + 10)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model.train()
    noisy = [model(**given)["logits"] for _ in range(2)]
    assert not torch.equal(*noisy)
    torch.nn.functional.cross_entropy(noisy[0], torch.tensor([0, 1, 2, 0])).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "type_embed" not in n
    )
    model.eval()
    assert torch.equal(model(**given)["logits"], model(**given)["logits"])


def test_gguf_and_mlx_say_what_to_do(tmp_path):
    loaded, _ = made(tmp_path / "hf", "bert", "AutoModelForTokenClassification", {})
    with pytest.raises(
        ExportError, match=r"differs in classifier = token_classifier.*--without-head writes the encoder"
    ):
        export(loaded, tmp_path / "o", to="gguf")
    odd, _ = made(tmp_path / "odd", "albert", "AutoModelForTokenClassification", {})
    with pytest.raises(ExportError) as told:
        export(odd, tmp_path / "o", to="gguf")
    assert "--without-head" not in str(told.value)  # its body doesn't fit either
    with pytest.raises(ExportError, match="mlx-lm runs decoders only"):
        export(loaded, tmp_path / "o", to="mlx")


def test_a_head_excludes_the_other_outputs(tmp_path):
    spec = made(tmp_path, "bert", "AutoModelForSequenceClassification", {})[0].spec
    for more in ({"pooler": True}, {"pooling": Pooling()}):
        with pytest.raises(SpecError, match=f"a classifier excludes {next(iter(more))}"):
            replace(spec, **more)
