"""LoRA adapters, merged as they are read. Oracle: PEFT's own merge."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tolerances
from click.testing import CliRunner
from family_cases import CASES, settings
from safetensors.numpy import load_file, save_file
from support import hf_logits, hf_model, random_ids

from edgeformer.checkpoint import load
from edgeformer.cli import cli
from edgeformer.errors import CheckpointError, ConfigError, ModelNotFound
from edgeformer.runtimes._protocol import Options, require

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

TARGETS = {
    "llama": (["q_proj", "v_proj", "down_proj"], {}),
    "phi3": (["qkv_proj", "gate_up_proj"], dict(use_rslora=True)),
    "gpt2": (["c_attn", "c_proj"], dict(fan_in_fan_out=True)),
    "gpt_neox": (["query_key_value", "dense_4h_to_h"], dict(rank_pattern={"dense_4h_to_h": 3})),
    "falcon": (["query_key_value"], dict(alpha_pattern={"query_key_value": 14})),
}


def trained(folder, model_type, **options):
    """A tiny base, saved, and a random adapter on it; the merged transformers model."""
    config = settings(model_type, next(iter(CASES[model_type].values())))
    model = hf_model(folder / "base", model_type, **config)
    targets, more = TARGETS[model_type]
    lora = peft.LoraConfig(r=4, lora_alpha=10, target_modules=targets, init_lora_weights=False, **{**more, **options})
    adapted = peft.get_peft_model(model, lora).eval()
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn_like(p) * 0.3)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder / "adapter")
    return adapted.merge_and_unload()


@pytest.mark.parametrize("model_type", TARGETS)
def test_merged_as_peft_merges(model_type, tmp_path):
    hf = trained(tmp_path, model_type)
    ids = random_ids(97, 30)
    expected = hf_logits(hf, ids)
    plain = require("torch")[0].open(load(tmp_path / "base"), Options()).forward(ids[None], all_positions=True)[0]
    assert np.abs(plain - expected).max() > 0.1
    for model in (tmp_path / "adapter", f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"):
        session = require("torch")[0].open(load(model), Options())
        assert np.abs(session.forward(ids[None], all_positions=True)[0] - expected).max() <= tolerances.FAMILY


def test_exported_merged(tmp_path):
    trained(tmp_path, "llama")
    adapter, out = str(tmp_path / "adapter"), str(tmp_path / "onnx")
    run = CliRunner().invoke
    exported = run(cli, ["export", adapter, "-o", out], catch_exceptions=False)
    assert "is merged" in exported.output
    verified = run(cli, ["verify", out, "--against", adapter, "--length", "40", "--json"], catch_exceptions=False)
    assert json.loads(verified.stdout)["verdict"] == "pass"
    assert run(cli, ["verify", out, "--against", str(tmp_path / "base"), "--length", "40"]).exit_code == 1
    linked = run(cli, ["export", adapter, "-o", str(tmp_path / "linked"), "--weights", "link"])
    assert linked.exit_code == 0  # what the adapter does not touch is linked, the rest written
    assert run(cli, ["verify", str(tmp_path / "linked"), "--against", adapter, "--length", "40"]).exit_code == 0


def change(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_what_is_no_plain_lora_is_refused(tmp_path):
    trained(tmp_path, "llama")
    adapter = tmp_path / "adapter"
    for values, words in (
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"a_new_key": 3}, "a_new_key"),
        ({"lora_alpha": None}, "alpha of"),
        ({"lora_alpha": float("nan")}, "alpha of"),
        ({"alpha_pattern": {"(": 4}}, "alpha_pattern"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha of"),
        ({"r": 5}, "of rank 4"),
        ({"use_rslora": "yes"}, "use_rslora"),
    ):
        kept = (adapter / "adapter_config.json").read_text()
        change(adapter, **values)
        with pytest.raises(ConfigError, match=words):
            load(adapter)
        (adapter / "adapter_config.json").write_text(kept)
    change(adapter, base_model_name_or_path="/no/such/model")
    with pytest.raises(ModelNotFound, match=r"BASE\+"):
        load(adapter)


def test_tensors_that_are_no_pairs_are_refused(tmp_path):
    trained(tmp_path, "llama")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    stored = load_file(file)
    name = next(n for n in stored if "lora_A" in n)
    for changed, words in (
        ({}, "no tensors"),
        (stored | {name: stored[name][..., None, None]}, "no matrices"),
        (stored | {name: stored[name][:0]}, "no matrices"),
        ({n: t for n, t in stored.items() if n != name}, "cut short"),
        (stored | {"base_model.model.score.weight": stored[name]}, "no LoRA pair"),
    ):
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=words):
            load(tmp_path / "adapter")


def test_an_adapter_of_another_model_is_refused(tmp_path):
    trained(tmp_path / "a", "llama")
    trained(tmp_path / "b", "gpt2")
    with pytest.raises(CheckpointError, match="trained on another model"):
        load(f"{tmp_path / 'b' / 'base'}+{tmp_path / 'a' / 'adapter'}")
    hf_model(tmp_path / "wide", "llama", **settings("llama", {"head_dim": 16, "hidden_size": 96}))
    with pytest.raises(CheckpointError, match="don't fit"):
        load(f"{tmp_path / 'wide'}+{tmp_path / 'a' / 'adapter'}")
