"""What is read, and what is refused with one clear error: configs, weights, names, places."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
from family_cases import TINY
from safetensors.numpy import load_file, save_file
from support import STDLIB, load_tiny

from edgeformer.checkpoint.loading import load
from edgeformer.checkpoint.saving import save
from edgeformer.errors import CheckpointError, ConfigError, ModelNotFound, SpecError
from edgeformer.spec.serialization import to_json
from edgeformer.weights.parts import Part


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(STDLIB, copy)
    return copy


def edit(folder, remove=(), **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if k not in remove}))


def test_unknown_model_type_names_the_file_to_add(folder):
    edit(folder, model_type="mamba")
    with pytest.raises(ConfigError, match=r"there is no models/mamba\.py.*Known: albert, bart, bert"):
        load(folder)


@pytest.mark.parametrize("name", ["_config", "../llama", "llama.spec", ""])
def test_model_type_cannot_reach_other_files(folder, name):
    edit(folder, model_type=name)
    with pytest.raises(ConfigError, match="is not known"):
        load(folder)


def test_unread_keys_are_listed(folder):
    edit(folder, attention_sinks=4, talking_heads=True)
    with pytest.raises(ConfigError, match="neither reads nor ignores: attention_sinks, talking_heads"):
        load(folder)
    notes = load(folder, allow_unread_config=True).notes
    assert any("attention_sinks, talking_heads" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "'mish' is not known"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type 'spiral' is not known"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs 'factor'"),
        ({"rope_parameters": {"rope_type": "default", "twist": 2}}, "have unsupported keys: twist"),
        ({"partial_rotary_factor": 0.5}, "rotates whole heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer"),
        ({"num_hidden_layers": "six"}, "num_hidden_layers must be a positive integer"),
        ({"is_decoder": True}, "is_decoder = True is not supported"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantized by .hqq."),
    ],
)
def test_values_that_are_not_modelled(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        load(folder)


def test_contradictory_heads(folder):
    edit(folder, num_key_value_heads=3)
    with pytest.raises(SpecError, match="multiple of kv_heads"):
        load(folder)


def test_missing_key(folder):
    edit(folder, remove=["hidden_size"])
    with pytest.raises(ConfigError, match="lacks the key 'hidden_size'"):
        load(folder)


def test_both_spellings_of_rope_and_dtype(folder):
    new = load(folder).spec
    edit(folder, remove=["rope_parameters", "dtype"], rope_theta=10000.0, rope_scaling=None, torch_dtype="bfloat16")
    assert load(folder).spec == new
    edit(folder, rope_scaling={"type": "linear", "factor": 2.0})
    old = load(folder).spec
    edit(folder, rope_scaling=None, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    assert load(folder).spec == old != new


def test_broken_json(folder):
    (folder / "config.json").write_text('{"model_type": "llama",')
    with pytest.raises(ConfigError, match="is not JSON"):
        load(folder)


# ---------------------------------------------------------------------------------------------------------- weights


def test_missing_and_unused_tensors_are_both_listed(tmp_path):
    load_tiny(tmp_path, "llama", **TINY)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.gate.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as e:
        load(tmp_path)
    assert "1 tensors are missing" in str(e.value) and "model.layers.1.mlp.up_proj.weight" in str(e.value)
    assert "1 tensors are not used by the spec" in str(e.value) and "self_attn.gate.weight" in str(e.value)


def test_wrong_shape(tmp_path):
    load_tiny(tmp_path, "llama", **TINY)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is \[47\]; norm\.weight needs \[48\]"):
        load(tmp_path)


def test_truncated_file(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"is truncated: .* lie beyond its .* bytes"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"\x08", b"<html>not found</html>" * 10, struct.pack("<Q", 1 << 60) + b"{}"])
def test_not_a_safetensors_file(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        load(folder)


@pytest.mark.parametrize(
    "header", [b"[]", b"{nope", b'{"a": 3}', b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}']
)
def test_corrupt_header(folder, header):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    with pytest.raises(CheckpointError, match="corrupt"):
        load(folder)


def test_pickled_weights_are_refused_with_the_conversion(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"safetensors only.*edgeformer convert"):
        load(folder)


def test_missing_shard(tmp_path):
    hf = load_tiny(tmp_path / "hf", "llama", **TINY)[1]
    hf.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    gone = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=gone.name):
        load(tmp_path / "shards")


def test_integer_weights_are_refused(tmp_path):
    load_tiny(tmp_path, "llama", **TINY)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="has type I8"):
        load(tmp_path).weights["norm.weight"]


def test_no_tensor_is_read_before_it_is_needed(folder, monkeypatch):
    from edgeformer.weights import safetensors_file

    monkeypatch.setattr(safetensors_file.StoredTensor, "read", lambda self: pytest.fail(f"read {self.name}"))
    load(folder)


def test_a_base_model_without_prefix(tmp_path):
    load_tiny(tmp_path, "llama", **TINY, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    expected = load(tmp_path).weights["layers.0.attention.q.weight"]
    save_file({k.removeprefix("model."): v for k, v in tensors.items()}, tmp_path / "model.safetensors")
    assert np.array_equal(load(tmp_path).weights["layers.0.attention.q.weight"], expected)


def test_a_researchers_own_names(tmp_path):
    """A spec file, a state dict with names of one's own, and a map between them."""
    spec = load_tiny(tmp_path / "hf", "llama", **TINY, tie_word_embeddings=True)[0]
    mine = {}
    for name, tensor in spec.weights.items():
        key = name.replace("layers.", "h").replace("attention.", "att_").replace("ffn.", "mlp_")
        mine["tok" if name == "embed.weight" else key] = tensor
    mine["h0.att_q.weight"] = np.ascontiguousarray(mine["h0.att_q.weight"].T)
    mine["h1.att_q.weight"] = np.ascontiguousarray(mine["h1.att_q.weight"].T)
    save_file(mine, tmp_path / "mine.safetensors")
    (tmp_path / "spec.json").write_text(json.dumps(to_json(spec.spec)))
    names = {"embed.weight": "tok", "layers.{i}.attention.q.weight": Part("h{i}.att_q.weight", transposed=True)}
    for n in ("k", "v", "o"):
        names[f"layers.{{i}}.attention.{n}.weight"] = f"h{{i}}.att_{n}.weight"
    for n in ("gate", "up", "down"):
        names[f"layers.{{i}}.ffn.{n}.weight"] = f"h{{i}}.mlp_{n}.weight"
    for n in ("attention_norm", "ffn_norm"):
        names[f"layers.{{i}}.{n}.weight"] = f"h{{i}}.{n}.weight"
    loaded = load(tmp_path / "spec.json", weights=tmp_path / "mine.safetensors", names=names)
    for name in spec.weights:
        assert np.array_equal(loaded.weights[name], spec.weights[name]), name


def test_save_and_load(tmp_path):
    loaded = load(STDLIB)
    weights = {n: w.astype(np.float32) for n, w in loaded.weights.items()}
    again = load(save(loaded.spec, weights, tmp_path / "mine"))
    assert again.spec == loaded.spec
    assert all(np.array_equal(again.weights[n], w) for n, w in weights.items())


# ------------------------------------------------------------------------------------------------------------ MODEL


def test_nothing_by_that_name():
    with pytest.raises(ModelNotFound, match="neither a folder, a spec file"):
        load("no-such-model")


def test_an_empty_folder(tmp_path):
    with pytest.raises(ModelNotFound, match="holds neither a config"):
        load(tmp_path)


def test_offline_hub_id(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"hub can't be reached|hub answers"):
        load("someone/something-that-is-not-cached")


def test_a_config_alone_is_an_architecture(tmp_path):
    shutil.copy(STDLIB / "config.json", tmp_path)
    loaded = load(tmp_path)
    assert loaded.weights is None
    with pytest.raises(CheckpointError, match="an architecture without weights"):
        loaded.require_weights()


# -------------------------------------------------------------------------------------------- what the wild looks like


@pytest.mark.parametrize(
    "keys",
    [
        {"is_llama_config": True, "rope_interleaved": False},
        {"transformers.js_config": {"dtype": "q4"}},
        {"quantization_config": None, "rope_scaling": None, "attention_dropout": None, "rms_norm_eps": 1e-5},
        {"pretraining_tp": 1, "_name_or_path": "x", "unsloth_version": "2024.9", "max_sequence_length": 2048},
    ],
)
def test_harmless_keys(folder, keys):
    edit(folder, **keys)
    load(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"head_dim": "32"},
        {"num_key_value_heads": "2"},
        {"rms_norm_eps": "small"},
        {"rms_norm_eps": True},
        {"attention_bias": "no"},
        {"initializer_range": [0.02]},
        {"hidden_act": ["silu"]},
        {"rope_parameters": "default"},
        {"rope_parameters": {"rope_type": "linear", "factor": "two"}},
        {"rope_parameters": {"rope_type": "longrope", "short_factor": 1.0, "long_factor": [2.0], "factor": 2.0}},
        {"rope_parameters": None, "rope_theta": [1]},
        {"model_type": "qwen2", "layer_types": 3},
        {"model_type": "mistral", "sliding_window": "4k"},
    ],
)
def test_values_of_the_wrong_type(folder, values):
    edit(folder, **values)
    with pytest.raises((ConfigError, SpecError)):
        load(folder)


@pytest.mark.parametrize("content", ["[1]", "3", "null"])
def test_a_config_that_is_no_object(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="holds no JSON object"):
        load(folder)


def test_a_stored_head_that_differs_from_the_embedding_is_not_dropped(tmp_path):
    for model_type, config in (("llama", TINY), ("gpt2", dict(n_embd=48, n_head=6, n_layer=1, vocab_size=97))):
        where = tmp_path / model_type
        load_tiny(where, model_type, **config, tie_word_embeddings=True)
        tensors = load_file(where / "model.safetensors")
        embedding = next(v for k, v in tensors.items() if "embed_tokens" in k or "wte" in k)
        save_file(tensors | {"lm_head.weight": embedding.copy()}, where / "model.safetensors")
        load(where)  # the same values: tied indeed
        save_file(tensors | {"lm_head.weight": embedding + 0.1}, where / "model.safetensors")
        with pytest.raises(CheckpointError, match="Set tie_word_embeddings to false"):
            load(where)
        edit(where, tie_word_embeddings=False)
        assert np.array_equal(load(where).weights["head.weight"], embedding + 0.1)


def test_bert_as_it_was_saved_in_2018(tmp_path):
    """BertForPreTraining with a pooler, both heads, copies of the tied table, and LayerNorm.gamma/beta."""
    config = {k: v for k, v in TINY.items() if k != "num_key_value_heads"}
    expected = dict(load_tiny(tmp_path, "bert", auto="AutoModelForPreTraining", **config)[0].weights)
    tensors = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[name] = tensor
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    edit(tmp_path, architectures=["BertForMaskedLM"], pooler_type="first_token_transform", directionality="bidi")
    loaded = load(tmp_path)
    assert loaded.spec.pooler and loaded.spec.mlm and any("pre-training" in note for note in loaded.notes)
    assert all(np.array_equal(loaded.weights[n], w) for n, w in expected.items())


def test_a_single_file_wins_over_an_index(tmp_path):
    hf = load_tiny(tmp_path / "hf", "llama", **TINY)[1]
    hf.save_pretrained(tmp_path / "both", max_shard_size="40KB")
    shutil.copy(tmp_path / "hf" / "model.safetensors", tmp_path / "both")
    files = {s.stored.file.name for s in load(tmp_path / "both").weights.sources.values()}
    assert files == {"model.safetensors"}


def test_a_yarn_of_the_original_length_reaches_factor_times_as_far(folder):
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 1024}
    edit(folder, rope_parameters=rope)
    assert load(folder).spec.context == 4096
    edit(folder, rope_parameters=rope | {"original_max_position_embeddings": 256})
    assert load(folder).spec.context == 1024


def test_save_checks_what_it_is_given(tmp_path):
    loaded = load(STDLIB)
    weights = {f"_orig_mod.{n}": w.astype(np.float32) for n, w in loaded.weights.items()}
    save(loaded.spec, weights, tmp_path / "m")
    load(tmp_path / "m").require_weights()
    weights.pop("_orig_mod.norm.weight")
    with pytest.raises(CheckpointError, match=r"1 tensors differ:\s+norm\.weight"):
        save(loaded.spec, weights, tmp_path / "m")
    load(tmp_path / "m").require_weights()


def test_a_fused_tensor_that_cannot_be_cut(tmp_path):
    load_tiny(tmp_path, "gpt2", n_embd=48, n_head=6, n_layer=1, vocab_size=97)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(n for n in tensors if n.endswith("c_attn.weight"))
    tensors[name] = np.concatenate([tensors[name], tensors[name][:, :2]], 1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="wrong shape"):
        load(tmp_path)


def test_negative_offsets(folder):
    header = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    with pytest.raises(CheckpointError, match="corrupt"):
        load(folder)


def test_integers_and_floats_are_one_spec(folder):
    from edgeformer.spec.serialization import digest

    edit(folder, rope_parameters={"rope_type": "default", "rope_theta": 10000})
    assert digest(load(folder).spec) == digest(load(STDLIB).spec)
