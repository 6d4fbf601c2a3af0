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

from edgeformer.checkpoint.loading import load
from edgeformer.cli import cli
from edgeformer.errors import CheckpointError, ConfigError
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options

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


def both(folder):
    """MODEL of an adapter beside its base: an adapter doesn't choose a folder."""
    return f"{folder / 'base'}+{folder / 'adapter'}"


@pytest.mark.parametrize("model_type", TARGETS)
def test_merged_as_peft_merges(model_type, tmp_path):
    hf = trained(tmp_path, model_type)
    ids = random_ids(97, 30)
    expected = hf_logits(hf, ids)
    plain = require("torch")[0].open(load(tmp_path / "base"), Options()).forward(ids[None], all_positions=True)[0]
    assert np.abs(plain - expected).max() > 0.1
    for model in (both(tmp_path),):
        session = require("torch")[0].open(load(model), Options())
        assert np.abs(session.forward(ids[None], all_positions=True)[0] - expected).max() <= tolerances.FAMILY


def test_exported_merged(tmp_path):
    trained(tmp_path, "llama")
    adapter, out = both(tmp_path), str(tmp_path / "onnx")
    run = CliRunner().invoke
    exported = run(cli, ["export", adapter, "-o", out], catch_exceptions=False)
    assert "was merged" in exported.output
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
        ({"r": 5}, "have rank 4"),
        ({"use_rslora": "yes"}, "use_rslora"),
    ):
        kept = (adapter / "adapter_config.json").read_text()
        change(adapter, **values)
        with pytest.raises(ConfigError, match=words):
            load(both(tmp_path))
        (adapter / "adapter_config.json").write_text(kept)
    change(adapter, base_model_name_or_path="/no/such/model")
    with pytest.raises(ConfigError, match="which of your folders is read; if that is the one, give the model as /no"):
        load(adapter)


def test_tensors_that_are_no_pairs_are_refused(tmp_path):
    trained(tmp_path, "llama")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    stored = load_file(file)
    name = next(n for n in stored if "lora_A" in n)
    for changed, words in (
        ({}, "no tensors"),
        (stored | {name: stored[name][..., None, None]}, "must be matrices"),
        (stored | {name: stored[name][:0]}, "must be matrices"),
        ({n: t for n, t in stored.items() if n != name}, "truncated"),
        (stored | {"base_model.model.score.weight": stored[name]}, "not LoRA pairs"),
    ):
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=words):
            load(both(tmp_path))


def test_an_adapter_of_another_model_is_refused(tmp_path):
    trained(tmp_path / "a", "llama")
    trained(tmp_path / "b", "gpt2")
    with pytest.raises(CheckpointError, match="trained on another model"):
        load(f"{tmp_path / 'b' / 'base'}+{tmp_path / 'a' / 'adapter'}")
    hf_model(tmp_path / "wide", "llama", **settings("llama", {"head_dim": 16, "hidden_size": 96}))
    with pytest.raises(CheckpointError, match="don't fit"):
        load(f"{tmp_path / 'wide'}+{tmp_path / 'a' / 'adapter'}")


def test_a_copy_of_the_bases_config_beside_an_adapter(tmp_path):
    """Some trainers leave it there: the folder is an adapter still; with a model in it, it is refused."""
    import shutil

    hf = trained(tmp_path, "llama")
    shutil.copy(tmp_path / "base" / "config.json", tmp_path / "adapter" / "config.json")
    ids = random_ids(97, 30)
    session = require("torch")[0].open(load(both(tmp_path)), Options())
    assert np.abs(session.forward(ids[None], all_positions=True)[0] - hf_logits(hf, ids)).max() <= tolerances.FAMILY
    shutil.copy(tmp_path / "base" / "model.safetensors", tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"both a model \(model\.safetensors\) and an adapter"):
        load(both(tmp_path))


def cached_repository(cache, name, commits, monkeypatch):
    """A repository in a Hugging Face cache, as a download leaves it: branch or tag -> files' folder."""
    import hashlib
    import shutil

    import huggingface_hub.constants

    root = cache / f"models--{name.replace('/', '--')}"
    for revision, folder in commits.items():
        commit = hashlib.sha1(revision.encode()).hexdigest()
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(commit)
        shutil.copytree(folder, root / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))


def test_the_revision_that_an_adapter_names(tmp_path, monkeypatch):
    """Merged into the base that it was trained on, not into main; adapters by hub id, too."""
    hf = trained(tmp_path, "llama")
    torch.manual_seed(5)
    other = hf_model(tmp_path / "other", "llama", **settings("llama", next(iter(CASES["llama"].values()))))
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    other.save_pretrained(tmp_path / "other")
    cache = tmp_path / "cache"
    cached_repository(cache, "o/base", {"main": tmp_path / "other", "v1": tmp_path / "base"}, monkeypatch)
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": "o/base", "revision": "v1"}
    file.write_text(json.dumps(config))
    cached_repository(cache, "o/adapter", {"main": tmp_path / "adapter"}, monkeypatch)
    ids, expected = random_ids(97, 30), None
    expected = hf_logits(hf, ids)
    for model in (tmp_path / "adapter", "o/adapter", f"o/base+{tmp_path / 'adapter'}", "o/base+o/adapter"):
        session = require("torch")[0].open(load(model), Options())
        assert np.abs(session.forward(ids[None], all_positions=True)[0] - expected).max() <= tolerances.FAMILY, model
    notes = load(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}").notes
    assert any("revision 'v1'" in note and "not checked" in note for note in notes)


def test_adapters_of_what_they_cannot_be_merged_into(tmp_path):
    """An artefact, an edgeformer folder, a GGUF file: refused with the reason, never ignored."""
    from edgeformer.api import export
    from edgeformer.checkpoint.saving import save

    trained(tmp_path, "llama")
    base = load(tmp_path / "base")
    export(base, tmp_path / "onnx")
    export(base, tmp_path / "gguf", to="gguf", no_tokenizer=True)
    save(base.spec, {n: np.asarray(w) for n, w in base.weights.items()}, tmp_path / "own")
    (tmp_path / "alone").mkdir()
    (tmp_path / "gguf" / "model.gguf").rename(tmp_path / "alone" / "model.gguf")
    for model in ("onnx", "own"):
        with pytest.raises(CheckpointError, match="an artefact or a checkpoint of"):
            load(f"{tmp_path / model}+{tmp_path / 'adapter'}")
    for model in ("alone", "alone/model.gguf"):
        with pytest.raises(CheckpointError, match="is a GGUF file"):
            load(f"{tmp_path / model}+{tmp_path / 'adapter'}")


def test_an_adapters_own_chat_goes_along(tmp_path):
    """Its tokenizer with more tokens, its template, its end ids; what it lacks is the base's."""
    import shutil

    from chat_model import chat_model, tokenizer

    from edgeformer.checkpoint.companions.chat import chat_templates
    from edgeformer.checkpoint.companions.special import special_ids
    from edgeformer.checkpoint.companions.tokenizer import load_tokenizer

    trained(tmp_path, "llama")
    chat_model(tmp_path / "chat")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(tmp_path / "chat" / name, tmp_path / "base" / name)
    plain = load(both(tmp_path))
    assert chat_templates(plain.around)["default"].startswith("{{ bos_token }}")
    own = tokenizer()
    own.add_special_tokens(["<own>"])
    own.save(str(tmp_path / "adapter" / "tokenizer.json"))
    (tmp_path / "adapter" / "chat_template.jinja").write_text("own {{ messages[0].content }}")
    (tmp_path / "adapter" / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    adapted = load(both(tmp_path))
    assert load_tokenizer(adapted.around).encode("<own>", special=False) == [own.token_to_id("<own>")]
    assert chat_templates(adapted.around) == {"default": "own {{ messages[0].content }}"}
    assert special_ids(adapted.around).eos == (7,)
