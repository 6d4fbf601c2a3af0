"""T3: encoder families against transformers, bare and with their head for masked tokens, padded either way.

Oracle: transformers in float32, on each row's real tokens alone where positions count tokens, on the padded batch where they
count slots.
"""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from encoder_cases import ENCODERS, encoder_settings
from support import load_tiny, random_ids, record_errors, sessions

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
