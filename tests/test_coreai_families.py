"""Core AI's own runtime on every component and every family: what is exported is what transformers, or float64, computes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tolerances
from component_cases import COMPONENTS, ENCODERS, PREFIXED
from encoder_cases import ENCODER_DECODERS, encoder_settings, pair_settings
from encoder_cases import ENCODERS as ENCODER_FAMILIES
from family_cases import CASES, DECODERS, settings
from support import hf_logits, load_tiny, random_ids, record_errors, saved

from edgeformer.backends.numpy import NumpyModel
from edgeformer.exporters.coreai import package
from edgeformer.exporters.coreai.exporter import export_coreai
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options

pytestmark = pytest.mark.skipif(package.missing() is not None, reason=str(package.missing()))
T, PREFILL = 100, 60


def opened(loaded, folder, **options):
    """A session on a new artefact in float32."""
    export_coreai(loaded, folder, precision="fp32")
    return require("coreai")[0].open(folder, Options(**options))


def in_chunks(session, ids, *ends):
    """Logits [1, T, V]: chunks, then single steps."""
    session.reset()
    cuts = [0, *ends, *range(ends[-1] + 1, ids.shape[1] + 1)]
    parts = [session.forward(ids[:, a:b], all_positions=True) for a, b in itertools.pairwise(cuts)]
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("case", [*COMPONENTS, *PREFIXED])
def test_component(case, tmp_path):
    spec, given = (COMPONENTS | PREFIXED)[case], {}
    loaded, weights = saved(spec, tmp_path / "s")
    ids = random_ids(31, 1, 24)
    session = opened(loaded, tmp_path / "m", capacity=32)
    if spec.prefixed:
        given, session.prefix_length = {"prefix_length": np.array([7])}, 7
    expected = NumpyModel(spec, weights, np.float64)(ids, **given)[0]["logits"]
    worst = float(np.abs(in_chunks(session, ids, 8, 14) - expected).max())
    record_errors("components", f"{case}@coreai", {"coreai": worst})
    assert worst <= tolerances.LAYER * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("case", ENCODERS)
def test_encoder_component(case, tmp_path):
    """A batch with padding on the right and on the left, all outputs."""
    spec = ENCODERS[case]
    loaded, weights = saved(spec, tmp_path / "s")
    ids, mask = random_ids(31, 3, 24), np.ones((3, 24), np.int64)
    mask[1, 19:] = mask[2, :3] = 0
    types = random_ids(spec.token_types, 3, 24) if spec.token_types > 1 else None
    inputs = {"input_ids": ids, "attention_mask": mask} | ({} if types is None else {"token_type_ids": types})
    expected, _ = NumpyModel(spec, weights, np.float64)(ids, mask, None, types)
    found = opened(loaded, tmp_path / "m").encode(inputs)
    assert set(found) == set(expected)
    worst = 0.0
    for name, x in expected.items():
        error = np.abs(found[name] - x)
        error = error[mask.astype(bool)] if x.ndim == 3 else error
        assert error.max() <= tolerances.LAYER * max(1.0, np.abs(x).max()), name
        worst = max(worst, float(error.max()))
    record_errors("components", f"{case}@coreai", {"coreai": worst})


@pytest.mark.parametrize(("model_type", "case"), DECODERS)
def test_decoder(model_type, case, tmp_path):
    loaded, hf = load_tiny(tmp_path / "hf", model_type, **settings(model_type, CASES[model_type][case]))
    ids = random_ids(97, 1, T)
    expected = hf_logits(hf, ids[0])
    session = opened(loaded, tmp_path / "m")
    found = {"uncached": session.forward(ids, all_positions=True), "cached": in_chunks(session, ids, 35, PREFILL)}
    errors = {f"coreai {how}": float(np.abs(logits[0] - expected).max()) for how, logits in found.items()}
    record_errors("families", f"{model_type}@{case}-coreai", errors)
    assert max(errors.values()) <= tolerances.FAMILY, errors


@pytest.mark.parametrize(("model_type", "case"), [(m, c) for m, cases in ENCODER_FAMILIES.items() for c in cases])
def test_encoder(model_type, case, tmp_path):
    """The oracle is the numpy back end, which test_encoders holds against transformers."""
    config = encoder_settings(model_type, ENCODER_FAMILIES[model_type][case])
    loaded, _ = load_tiny(tmp_path / "hf", model_type, auto="AutoModel", **config)
    ids, mask = random_ids(80, 3, 64) + 10, np.ones((3, 64), np.int64)
    mask[1, 44:], mask[2, :11] = 0, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in [i.name for i in loaded.spec.inputs()]:
        inputs["token_type_ids"] = random_ids(config.get("type_vocab_size", 2), 3, 64, seed=1)
    expected = require("numpy")[0].open(loaded, Options()).encode(inputs)
    found, errors = opened(loaded, tmp_path / "m").encode(inputs), {}
    for row, how in enumerate(("uncached", "right-padded", "left-padded")):
        real = mask[row].astype(bool)
        worst = max(
            float(np.abs(found[n][row] - x[row])[real if x.ndim == 3 else ...].max()) for n, x in expected.items()
        )
        errors[f"coreai {how}"] = worst
    record_errors("families", f"{model_type}@{case}-coreai", errors)
    assert max(errors.values()) <= tolerances.FAMILY, errors


@pytest.mark.parametrize(("model_type", "case"), [(m, c) for m, cases in ENCODER_DECODERS.items() for c in cases])
def test_encoder_decoder(model_type, case, tmp_path):
    """Two functions of one asset. The oracle is the numpy back end, which test_encoder_decoders holds against transformers."""
    config = pair_settings(model_type, ENCODER_DECODERS[model_type][case])
    loaded, _ = load_tiny(tmp_path / "hf", model_type, auto="AutoModelForSeq2SeqLM", **config)
    read, written = random_ids(80, 1, 40) + 10, random_ids(80, 1, 64, seed=1) + 10
    session, reference = opened(loaded, tmp_path / "m"), require("numpy")[0].open(loaded, Options())
    for each in (session, reference):
        each.source(read)
    expected = reference.forward(written, all_positions=True)
    errors = {
        "coreai uncached": float(np.abs(session.forward(written, all_positions=True) - expected).max()),
        "coreai cached": float(np.abs(in_chunks(session, written, 20, 40) - expected).max()),
    }
    record_errors("families", f"{model_type}@{case}-coreai", errors)
    assert max(errors.values()) <= tolerances.FAMILY, errors
