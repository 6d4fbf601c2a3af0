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
    if model_type == "roberta":
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


@pytest.mark.parametrize("model_type", ENCODERS)
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_sentence_embeddings(model_type, mode, tmp_path):
    """The pooling that modules.json of sentence-transformers declares, of every encoder family. Oracle: its formula on
    transformers' hidden states."""
    import torch

    config = encoder_settings(model_type, next(iter(ENCODERS[model_type].values())))
    folder = tmp_path / "hf"
    _, hf = load_tiny(folder, model_type, auto="AutoModel", **config)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    on = {f"pooling_mode_{'mean_tokens' if mode == 'mean' else 'cls_token'}": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48, **on}))
    loaded = load(folder)
    ids, mask = random_ids(80, 2, 20) + 10, np.ones((2, 20), np.int64)
    mask[1, 14:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    expected = []
    for row in range(2):
        with torch.no_grad():
            hidden = hf(torch.from_numpy(ids[row, mask[row].astype(bool)][None])).last_hidden_state[0].numpy()
        vector = hidden.mean(0) if mode == "mean" else hidden[0]
        expected.append(vector / np.linalg.norm(vector))
    for name, session in sessions(loaded, tmp_path).items():
        found = session.encode(inputs)["sentence_embedding"]
        assert np.abs(found - np.stack(expected)).max() <= tolerances.FAMILY, name
