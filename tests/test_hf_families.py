"""T3: a family says itself both ways: every odd config becomes a spec, a transformers folder, and the same spec again.

Oracle: transformers, which built the model, loads what edgeformer wrote, and computes and generates the same.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from encoder_cases import ENCODER_DECODERS, ENCODERS, encoder_settings, pair_settings
from family_cases import CASES, DECODERS, settings
from support import load_tiny, random_ids, record_errors

from edgeformer import load
from edgeformer.api import export
from edgeformer.exporters.hf.config import family_config
from edgeformer.inference.lookup import get
from edgeformer.spec.serialization import digest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ALL = get("llama_cpp")[0].unavailable() is None
"""Whether this is the run with the other tools: all configs then; otherwise transformers loads each family's first."""
EXACT = 1e-5
"""Largest difference of two runs of one program on the same weights, whose files hold them in another order."""


def again(loaded, folder, auto):
    """What transformers makes of the folder that edgeformer writes; every weight has to be found."""
    export(loaded, folder, to="hf")
    model, info = getattr(transformers, auto).from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    assert not any(info.values()), info
    written = load(folder)
    assert digest(written.spec) == digest(loaded.spec)
    given = json.loads((folder / "config.json").read_text())
    assert given["model_type"] == loaded.model_type
    return model.eval()


def compared(model_type, hf, made, **given):
    with torch.no_grad():
        theirs, ours = hf(**given)[0], made(**given)[0]
    worst = float((theirs - ours).abs().max())
    record_errors("hf", model_type, {"transformers": worst})
    assert worst <= EXACT


def firsts(cases: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """All cases, or the first of each family."""
    return cases if ALL else list({family: (family, case) for family, case in reversed(cases)}.values())[::-1]


@pytest.mark.parametrize(("model_type", "case"), firsts(DECODERS))
def test_decoder(model_type, case, tmp_path):
    loaded, hf = load_tiny(tmp_path / "hf", model_type, **settings(model_type, CASES[model_type][case]))
    made = again(loaded, tmp_path / "out", "AutoModelForCausalLM")
    ids = torch.from_numpy(random_ids(97, 2, 150))
    compared(f"{model_type}@{case}", hf, made, input_ids=ids)
    asked = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(hf.generate(ids[:1, :20], **asked), made.generate(ids[:1, :20], **asked))


ENCODER_CASES = [(family, case) for family, cases in ENCODERS.items() for case in cases]


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForMaskedLM"])
@pytest.mark.parametrize(("model_type", "case"), firsts(ENCODER_CASES))
def test_encoder(model_type, case, auto, tmp_path):
    config = encoder_settings(model_type, ENCODERS[model_type][case])
    loaded, hf = load_tiny(tmp_path / "hf", model_type, auto=auto, **config)
    made = again(loaded, tmp_path / "out", auto)
    compared(f"{model_type}@{case}", hf, made, input_ids=torch.from_numpy(random_ids(97, 2, 60)))


PAIRS = [(family, case) for family, cases in ENCODER_DECODERS.items() for case in cases]


@pytest.mark.parametrize(("model_type", "case"), firsts(PAIRS))
def test_encoder_decoder(model_type, case, tmp_path):
    config = pair_settings(model_type, ENCODER_DECODERS[model_type][case])
    loaded, hf = load_tiny(tmp_path / "hf", model_type, auto="AutoModelForSeq2SeqLM", **config)
    made = again(loaded, tmp_path / "out", "AutoModelForSeq2SeqLM")
    given = dict(input_ids=random_ids(97, 2, 40), decoder_input_ids=random_ids(97, 2, 30, seed=1))
    compared(f"{model_type}@{case}", hf, made, **{k: torch.from_numpy(v) for k, v in given.items()})


def test_every_odd_config_says_itself_again(tmp_path):
    """config -> spec -> config -> spec, of every case in every tier."""
    cases = [(family, settings(family, CASES[family][case])) for family, case in DECODERS]
    cases += [(family, encoder_settings(family, ENCODERS[family][case])) for family, case in ENCODER_CASES]
    cases += [(family, pair_settings(family, ENCODER_DECODERS[family][case])) for family, case in PAIRS]
    for family, config in cases:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **config}))
        loaded = load(tmp_path)
        assert family_config(loaded.spec, family).config["model_type"] == family, config


def test_every_named_config_says_itself_again():
    from edgeformer.checkpoint.loading import named_specs

    without = {name for name in named_specs() if load(name).model_type is None}
    for name in named_specs():
        if name not in without:
            loaded = load(name)
            said = family_config(loaded.spec, loaded.model_type).config["model_type"]
            # MiniCPM is written as Granite, which is the same architecture and has a class in transformers
            assert said == ("granite" if loaded.model_type == "minicpm" else loaded.model_type), name
    assert without <= {"dclm-1b"}


def test_the_choice_among_families_is_the_same_every_time():
    spec = load("llama-3.2-1b").spec
    assert [family_config(spec, prefer).name for prefer in (None, "llama", "granite", "nothing")] == [
        "llama", "llama", "granite", "llama",
    ]  # fmt: skip
    assert np.all([family_config(load("minicpm-1b-sft-bf16").spec).name == "granite" for _ in range(3)])


@pytest.mark.parametrize("changes", [{"logit_scale": 0.0}, {"logit_scale": -1.0}, {"embed_scale": 0.0}])
def test_multipliers_that_no_family_has(changes):
    from dataclasses import replace

    from support import small_spec

    from edgeformer.errors import ExportError

    with pytest.raises(ExportError, match="the nearest is llama, which differs in"):
        family_config(replace(small_spec(), **changes))
