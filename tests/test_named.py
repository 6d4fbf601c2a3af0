"""Named specs: every one is the size that transformers' class makes of the same config, and of the published figures."""

from __future__ import annotations

import csv
import json

import pytest
from support import ROOT

from edgeformer.checkpoint.loading import load, named_specs
from edgeformer.weights.costs import costs, parameters

NAMED = named_specs()
SURVEY = list(csv.DictReader((ROOT / "models" / "survey.csv").open()))
WITHOUT_A_CLASS = ("minicpm", "openelm", "chatglm")
# figures that count something else, and what it is
EXPLAINED = {
    "bloom-560m": ("the head is stored twice", 250_880 * 1024),
    "bloom-1b1": ("the head is stored twice", 250_880 * 1536),
}


def test_every_row_of_the_survey_is_there():
    assert len(SURVEY) == 68
    missing = {row["model"]: row["error"] for row in SURVEY if not row["named"]}
    assert set(missing) == {"google/recurrentgemma-2b", "MBZUAI/MobiLlama-1B", "MBZUAI/MobiLlama-05B"}
    assert all(missing.values())
    assert {row["named"] for row in SURVEY if row["named"]} <= set(NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_the_parameters_are_those_of_transformers(name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = json.loads(NAMED[name].read_text())
    if "kind" in config or config["model_type"] in WITHOUT_A_CLASS:
        pytest.skip("transformers has no class for it; tests/test_formula_families.py has its formula")
    model_type = config.pop("model_type")
    if model_type in ("phi3", "smollm3"):
        config["pad_token_id"] = 0
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **config))
    assert parameters(load(name).spec) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("row", [r for r in SURVEY if r["published_params_M"]], ids=lambda row: row["named"])
def test_published_figures(row):
    ours, published = parameters(load(row["named"]).spec), float(row["published_params_M"]) * 1e6
    if row["named"] in EXPLAINED:
        ours += EXPLAINED[row["named"]][1]
    assert abs(ours / published - 1) <= 0.004


# the survey's bars of a cache of 2,048 tokens in fp16, in MiB
@pytest.mark.parametrize(
    ("name", "mib"),
    [("smollm-135m", 45), ("qwen2-1.5b", 56), ("gemma-2b", 36), ("bloom-1b1", 288), ("stablelm-zephyr-3b", 640)],
)
def test_published_caches(name, mib):
    assert costs(load(name).spec).kv_bytes_per_token * 2048 == mib * 2**20


def test_openelm_by_its_published_lists():
    """The lists of heads that the checkpoint's own config gives (Mehta et al. 2024)."""
    blocks = load("openelm-270m").spec.blocks
    assert [b.attention.heads for b in blocks] == [12] * 5 + [16] * 7 + [20] * 4
    assert [b.attention.kv_heads for b in blocks] == [3] * 5 + [4] * 7 + [5] * 4
    assert [b.ffn.hidden for b in blocks][::5] == [768, 2048, 3584, 5120]
