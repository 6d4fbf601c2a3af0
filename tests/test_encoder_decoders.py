"""T3: encoder–decoder families against transformers: one pass, a cached run, padded texts, gradients.

Oracle: transformers in float32, on each text's real tokens alone.
"""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from encoder_cases import ENCODER_DECODERS, pair_settings
from support import load_tiny, random_ids, run_cached, sessions

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeformer.api import build_torch  # noqa: E402
from edgeformer.checkpoint import load  # noqa: E402

READ, WRITTEN, PREFILL = 60, 160, 100
PAIRS = [(model_type, name) for model_type, cases in ENCODER_DECODERS.items() for name in cases]


def tiny(folder, model_type, case):
    config = pair_settings(model_type, ENCODER_DECODERS[model_type][case])
    return load_tiny(folder, model_type, auto="AutoModelForSeq2SeqLM", **config)


@pytest.mark.parametrize(("model_type", "case"), PAIRS)
def test_encoder_decoder(model_type, case, tmp_path):
    loaded, hf = tiny(tmp_path / "hf", model_type, case)
    read, written = random_ids(80, 2, READ) + 10, random_ids(80, 2, WRITTEN, seed=1) + 10
    valid = np.ones_like(read)
    valid[1, READ - 11 :] = 0
    expected = []
    for row in range(2):
        with torch.no_grad():
            ids = torch.from_numpy(read[row, valid[row].astype(bool)][None])
            out = hf(input_ids=ids, decoder_input_ids=torch.from_numpy(written[row][None]))
        expected.append(out.logits[0].numpy())
    expected = np.stack(expected)
    for name, session in sessions(loaded, tmp_path, batch=2).items():
        session.source(read, valid)
        whole = session.forward(written, all_positions=True)
        assert np.abs(whole - expected).max() <= tolerances.FAMILY, f"{name}: {np.abs(whole - expected).max():.2e}"
        cached = run_cached(session, written, None, PREFILL)
        assert np.abs(cached - expected).max() <= tolerances.FAMILY, f"{name}, cached"


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_gradients_against_transformers(model_type, tmp_path):
    loaded, hf = tiny(tmp_path / "hf", model_type, "plain")
    read, written = (torch.from_numpy(random_ids(80, 2, n, seed=n)) + 10 for n in (20, 30))

    def loss(logits):
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), written.flatten())

    loss(hf(input_ids=read, decoder_input_ids=written).logits).backward()
    with torch.no_grad():
        for p in hf.parameters():
            p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
    hf.save_pretrained(tmp_path / "gradients")
    expected = load(tmp_path / "gradients").require_weights()
    model = build_torch(loaded).eval()
    loss(model(read, None, written)).backward()
    largest = max(np.abs(x).max() for name, x in expected.items() if name != "head_bias")
    for name, p in model.named_parameters():
        if name == "head_bias":  # transformers doesn't train it
            continue
        assert p.grad is not None, name
        scale = max(np.abs(expected[name]).max(), 1e-3 * largest if name.endswith(".k.bias") else 0)
        assert np.abs(p.grad.numpy() - expected[name]).max() <= tolerances.GRADIENT * scale, name
