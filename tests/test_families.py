"""T3: every family against transformers, on odd configs, in every back end, cached and uncached, padded either way.

Oracle: transformers in float32 on each row's real tokens alone, so padding can't hide in it.
"""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from family_cases import CASES, DECODERS, TINY, settings
from support import hf_logits, load_tiny, random_ids, record_errors, run_cached, sessions

pytest.importorskip("transformers")

T, PREFILL = 160, 100
LONG = list(np.linspace(1.5, 6.0, 8))


@pytest.mark.parametrize(("model_type", "case"), DECODERS)
def test_decoder(model_type, case, tmp_path):
    loaded, hf = load_tiny(tmp_path / "hf", model_type, **settings(model_type, CASES[model_type][case]))
    ids = random_ids(97, 3, T)
    # row 1 padded on the left; row 2 on the right: at the end of the sequence, or at the end of a prompt that goes on
    ended, resumed = np.ones_like(ids), np.ones_like(ids)
    ended[1, :13] = resumed[1, :13] = 0
    ended[2, T - 12 :] = 0
    resumed[2, PREFILL - 12 : PREFILL] = 0
    errors: dict[str, float] = {}
    for name, session in sessions(loaded, tmp_path, batch=3).items():
        session.reset()
        results = {
            "uncached": (session.forward(ids, ended, all_positions=True), ended),
            "cached": (run_cached(session, ids, resumed, PREFILL), resumed),
        }
        for how, (logits, valid) in results.items():
            for row in range(3):
                real = valid[row].astype(bool)
                expected = hf_logits(hf, ids[row, real])
                worst = float(np.abs(logits[row, real] - expected).max())
                kind = f"{name} {how if row == 0 else 'left-padded' if row == 1 else 'right-padded'}"
                errors[kind] = max(errors.get(kind, 0.0), worst)
                assert worst <= tolerances.FAMILY, f"{name}, {how}, row {row}: {worst:.2e}"
    record_errors("families", f"{model_type}@{case}", errors)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_length_dependent_rope(kind, model_type, tmp_path):
    """Angles that depend on the sequence's length: cached keys keep the angles they were stored with."""
    import torch

    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": LONG, "original_max_position_embeddings": 64}
    config = TINY | {"head_dim": 16, "rope_parameters": rope}
    config["max_position_embeddings"] = 64 if kind == "dynamic" else 256
    loaded, hf = load_tiny(tmp_path / "hf", model_type, **config)
    ids, steps = random_ids(97, 1, T), [(0, 40), *((i, i + 1) for i in range(40, T))]
    assert loaded.spec.context == 256  # 4 · 64: a dynamic scaling reaches factor times its original length
    with torch.no_grad():
        past, rows = None, []
        for a, b in steps:
            out = hf(torch.from_numpy(ids[:, a:b]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            rows.append(out.logits.numpy())
        cached = np.concatenate(rows, 1)
        hf.model.rotary_emb = type(hf.model.rotary_emb)(hf.config)  # transformers remembers the longest length seen
        uncached = hf(torch.from_numpy(ids)).logits.numpy()
    for name, session in sessions(loaded, tmp_path).items():
        session.reset()
        whole = session.forward(ids, all_positions=True)
        assert np.abs(whole - uncached).max() <= tolerances.FAMILY, name
        assert np.abs(run_cached(session, ids, None, 40) - cached).max() <= tolerances.FAMILY, name
