"""Heads of encoders: every family and head against transformers, in every back end; folders and graphs that other tools read."""

import numpy as np
import pytest
import tolerances
from encoder_cases import ENCODERS, encoder_settings
from support import load_tiny, random_ids, record_errors, sessions

from edgeformer import load
from edgeformer.api import export

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
    record_errors("heads", f"{model_type}@{auto.removeprefix('AutoModel')}", errors)


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
