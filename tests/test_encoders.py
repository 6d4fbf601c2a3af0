"""T3: encoder families against transformers, bare and with their head for masked tokens, padded either way.

Oracle: transformers in float32, on each row's real tokens alone where positions count tokens, on the padded batch where they
count slots.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import tolerances
from encoder_cases import ENCODERS, encoder_settings
from support import load_tiny, random_ids, record_errors, sessions

from edgeformer.checkpoint.loading import load
from edgeformer.errors import ConfigError

pytest.importorskip("transformers")

T = 160
ENCODER_CASES = [(model_type, name) for model_type, cases in ENCODERS.items() for name in cases]


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForMaskedLM"])
@pytest.mark.parametrize(("model_type", "case"), ENCODER_CASES)
def test_encoder(model_type, case, auto, tmp_path):
    import torch

    config = encoder_settings(model_type, ENCODERS[model_type][case])
    loaded, hf = load_tiny(tmp_path / "hf", model_type, auto=auto, **config)
    ids = random_ids(80, 3, T) + 10  # no padding token among them
    mask, types = np.ones_like(ids), random_ids(config.get("type_vocab_size", 2), 3, T, seed=1)
    mask[1, T - 20 :], mask[2, :11] = 0, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in [i.name for i in loaded.spec.inputs()]:
        inputs["token_type_ids"] = types
    real = mask.astype(bool)

    def theirs(**given):
        with torch.no_grad():
            out = hf(**{k: torch.from_numpy(v) for k, v in given.items()})
        return {
            k: v.numpy()
            for k, v in out.items()
            if k in ("last_hidden_state", "pooler_output", "logits") and v is not None
        }

    if loaded.spec.counts_padding:
        whole = theirs(**inputs)
        expected = [{k: v[row][real[row]] if v.ndim == 3 else v[row] for k, v in whole.items()} for row in range(3)]
    else:
        rows = [theirs(**{k: v[row][real[row]][None] for k, v in inputs.items()}) for row in range(3)]
        expected = [{k: v[0] for k, v in row.items()} for row in rows]
    if not loaded.spec.counts_padding and model_type != "modernbert":
        expected[2].pop("pooler_output", None)  # of the first slot, which is padding
    errors: dict[str, float] = {}
    for name, session in sessions(loaded, tmp_path).items():
        outputs = session.encode(inputs)
        for row in range(3):
            for key, theirs_row in expected[row].items():
                ours = outputs[key][row]
                ours = ours[real[row]] if ours.ndim == 2 else ours
                worst = float(np.abs(ours - theirs_row).max())
                kind = f"{name} {'uncached' if row == 0 else 'right-padded' if row == 1 else 'left-padded'}"
                errors[kind] = max(errors.get(kind, 0.0), worst)
                assert worst <= tolerances.FAMILY, f"{name}, {key}, row {row}: {worst:.2e}"
        assert set(outputs) >= set(expected[0])
    record_errors("families", f"{model_type}@{case}-{auto}", errors)


def embedder(folder, pooling, normalize=True):
    """Make a folder one of sentence-transformers."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48, **pooling}))


def pooled(hidden, modes, normalize=True):
    """sentence-transformers' formulas, on one text's hidden states without padding [T, D]."""
    weights = np.arange(1, len(hidden) + 1, dtype=np.float64)[:, None]
    vectors = {
        "cls": hidden[0],
        "max": hidden.max(0),
        "mean": hidden.mean(0),
        "mean_sqrt_len_tokens": hidden.sum(0) / np.sqrt(len(hidden)),
        "weightedmean": (hidden * weights).sum(0) / weights.sum(),
        "lasttoken": hidden[-1],
    }
    vector = np.concatenate([vectors[mode] for mode in modes])
    return vector / np.linalg.norm(vector) if normalize else vector


POOLINGS = {
    **{mode: (mode,) for mode in ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")},
    "several": ("lasttoken", "cls", "max", "mean"),
}


@pytest.mark.parametrize(
    ("model_type", "case"),
    [*[(m, case) for m in ENCODERS for case in ("mean", "cls")], *[("bert", case) for case in list(POOLINGS)[2:]]],
)
def test_sentence_embeddings(model_type, case, tmp_path):
    """The pooling that modules.json of sentence-transformers declares, of every encoder family. Oracle: its formula on
    transformers' hidden states."""
    import torch

    modes, normalize = POOLINGS[case], case != "mean_sqrt_len_tokens"
    config = encoder_settings(model_type, next(iter(ENCODERS[model_type].values())))
    folder = tmp_path / "hf"
    _, hf = load_tiny(folder, model_type, auto="AutoModel", **config)
    embedder(folder, {"pooling_mode": modes if len(modes) > 1 else modes[0]}, normalize)
    loaded = load(folder)
    ids, mask = random_ids(80, 2, 20) + 10, np.ones((2, 20), np.int64)
    mask[1, 14:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    expected = []
    for row in range(2):
        with torch.no_grad():
            hidden = hf(torch.from_numpy(ids[row, mask[row].astype(bool)][None])).last_hidden_state[0].double().numpy()
        expected.append(pooled(hidden, modes, normalize))
    for name, session in sessions(loaded, tmp_path).items():
        found = session.encode(inputs)["sentence_embedding"]
        assert found.shape == (2, 48 * len(modes))
        assert np.abs(found - np.stack(expected)).max() <= tolerances.FAMILY, name
    written = json.loads((tmp_path / "onnx-cpu" / "1_Pooling" / "config.json").read_text())
    assert load(tmp_path / "onnx-cpu").spec == loaded.spec
    assert ("pooling_mode" in written) == (case == "several")  # flags, which every version reads, where they suffice


@pytest.mark.parametrize(("flags", "modes"), [
    (("cls_token", "max_tokens", "mean_tokens"), ("cls", "max", "mean")),
    (("lasttoken", "weightedmean_tokens"), ("weightedmean", "lasttoken")),
])  # fmt: skip
def test_several_flags_are_concatenated_in_the_order_of_sentence_transformers(flags, modes, tmp_path):
    load_tiny(tmp_path, "bert", auto="AutoModel", **encoder_settings("bert", {}))
    embedder(tmp_path, {f"pooling_mode_{flag}": True for flag in flags})
    spec = load(tmp_path).spec
    assert spec.pooling.modes == modes
    assert spec.outputs()["sentence_embedding"] == ("batch_size", 48 * len(modes))


@pytest.mark.parametrize(("pooling", "message"), [
    ({"pooling_mode": "median"}, "modes are cls, max, mean"),
    ({"pooling_mode": ["mean", "mean"]}, "modes are cls, max, mean"),
    ({"pooling_mode": [["mean"]]}, "modes are cls, max, mean"),
    ({"pooling_mode": []}, "pooling_mode is an empty list"),
    ({"pooling_mode_cls_token": 1}, "pooling_mode_cls_token must be true or false"),
])  # fmt: skip
def test_a_pooling_that_is_refused(pooling, message, tmp_path):
    load_tiny(tmp_path, "bert", auto="AutoModel", **encoder_settings("bert", {}))
    embedder(tmp_path, pooling)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("model_type", ["qwen3", "mistral", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("case", ["lasttoken", "weightedmean"])
def test_decoders_as_embedders(model_type, case, tmp_path):
    """Qwen3-Embedding's kind: a decoder's folder with modules.json. Rows padded on either side; the oracle is transformers' body
    on each row alone, and sentence-transformers' formula."""
    import torch
    from family_cases import CASES, settings

    folder = tmp_path / "hf"
    _, hf = load_tiny(folder, model_type, **settings(model_type, next(iter(CASES[model_type].values()))))
    embedder(folder, {"pooling_mode": case})
    loaded = load(folder)
    assert list(loaded.spec.outputs()) == ["last_hidden_state", "sentence_embedding"]
    ids, mask = random_ids(80, 3, 40) + 10, np.ones((3, 40), np.int64)
    mask[1, 30:], mask[2, :11] = 0, 0
    real, expected = mask.astype(bool), []
    for row in range(3):
        with torch.no_grad():
            hidden = hf.base_model(torch.from_numpy(ids[row, real[row]][None])).last_hidden_state[0].double().numpy()
        expected.append(pooled(hidden, (case,)))
    for name, session in sessions(loaded, tmp_path).items():
        found = session.encode({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
        assert np.abs(found - np.stack(expected)).max() <= tolerances.FAMILY, name
    assert load(tmp_path / "onnx-cpu").spec == loaded.spec
    config = json.loads((tmp_path / "onnx-cpu" / "config.json").read_text())
    assert config["architectures"][0].endswith("Model")
