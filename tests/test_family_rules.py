"""What holds for every family: gradients are transformers', and nothing that isn't understood is passed over."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tolerances
from encoder_cases import ENCODER_DECODERS, ENCODERS, encoder_settings, pair_settings
from family_cases import CASES, settings
from support import hf_model, random_ids

from edgeformer import discover
from edgeformer.checkpoint.loading import load
from edgeformer.errors import ConfigError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from edgeformer.api import build_torch  # noqa: E402

FORMULAS = {
    "minicpm": dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6, vocab_size=97),
    "chatglm": dict(
        num_layers=2, padded_vocab_size=97, hidden_size=48, ffn_hidden_size=80, kv_channels=16, num_attention_heads=6,
    ),
    "openelm": dict(
        num_transformer_layers=2, model_dim=48, head_dim=16, vocab_size=97, num_query_heads=[2, 3], num_kv_heads=[1, 1],
        ffn_multipliers=[1.0, 2.0], activation_fn_name="swish",
    ),
}  # fmt: skip
# a key that a family reads, with a value that it doesn't model
UNMODELLED = {
    "albert": {"inner_group_num": 2},
    "bart": {"activation_function": "mish"},
    "bert": {"position_embedding_type": "relative_key"},
    "bloom": {"apply_residual_connection_post_layernorm": True},
    "chatglm": {"post_layer_norm": False},
    "cohere": {"hidden_act": "mish"},
    "deepseek_v2": {"norm_topk_prob": True},
    "distilbert": {"activation": "mish"},
    "electra": {"position_embedding_type": "relative_key"},
    "falcon": {"alibi": True},
    "gemma": {"use_bidirectional_attention": True},
    "gemma2": {"layer_types": ["full_attention", "chunked_attention"]},
    "gemma3_text": {"attn_logit_softcapping": 30.0},
    "glm": {"hidden_act": "mish"},
    "glm4": {"rope_scaling": {"rope_type": "mrope"}, "rope_parameters": None},
    "gpt2": {"reorder_and_upcast_attn": "yes"},
    "gpt_bigcode": {"activation_function": "mish"},
    "gpt_neo": {"attention_types": [[["global", "strided"], 1]]},
    "gpt_neox": {"hidden_act": "mish"},
    "granite": {"logits_scaling": "half"},
    "llama": {"rope_parameters": {"rope_type": "hyperbolic", "rope_theta": 1e4}},
    "marian": {"activation_function": "mish"},
    "minicpm": {"rope_scaling": {"type": "linear"}},
    "minicpm3": {"attention_dropout": 0.5},
    "mistral": {"sliding_window": -3},
    "mixtral": {"num_experts_per_tok": 9},
    "modernbert": {"layer_types": ["chunked_attention", "full_attention"]},
    "mpnet": {"relative_attention_num_buckets": 16},
    "mpt": {"attn_config": {"prefix_lm": True}},
    "olmo": {"clip_qkv": "hard"},
    "olmo2": {"num_key_value_heads": 4},
    "olmoe": {"num_experts_per_tok": 50},
    "openelm": {"ffn_with_glu": False},
    "opt": {"layerdrop": 0.5},
    "phi": {"hidden_act": "mish"},
    "phi3": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
    "qwen2": {"layer_types": ["sliding_attention", "sliding_attention"]},
    "qwen3": {"layer_types": ["full_attention"]},
    "qwen3_moe": {"num_experts_per_tok": 0},
    "roberta": {"position_embedding_type": "relative_key_query"},
    "smollm3": {"no_rope_layers": [1, 2]},
    "stablelm": {"rope_scaling": {"factor": 2.0}, "rope_parameters": None},
    "starcoder2": {"norm_type": "rms_norm"},
    "t5": {"feed_forward_proj": "gated-mish"},
}


SAME = {"camembert": "roberta", "mt5": "t5", "xlm_roberta": "roberta"}
"""Families that are another's network under a name of their own."""


def config_of(model_type: str) -> dict:
    """A config.json of a family, as transformers writes it where it knows the family."""
    if model_type in SAME:
        own = model_type.replace("xlm_", "xlm-")
        wanted = {k: v for k, v in config_of(SAME[model_type]).items() if k not in ("architectures", "model_type")}
        return transformers.AutoConfig.for_model(own, **wanted).to_dict()
    if model_type in FORMULAS:
        return {"model_type": model_type, **FORMULAS[model_type]}
    if model_type in CASES:
        config = settings(model_type, next(iter(CASES[model_type].values())))
    elif model_type in ENCODER_DECODERS:
        config = pair_settings(model_type, next(iter(ENCODER_DECODERS[model_type].values())))
    else:
        config = encoder_settings(model_type, next(iter(ENCODERS[model_type].values())))
    return transformers.AutoConfig.for_model(model_type, **config).to_dict()


def read(config: dict, folder):
    (folder / "config.json").write_text(json.dumps(config))
    return load(folder).spec


FAMILIES = discover.names("edgeformer.models")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_invented_key_is_refused(model_type, tmp_path):
    config = config_of(model_type)
    read(config, tmp_path)
    with pytest.raises(ConfigError, match="invented_key"):
        read(config | {"invented_key": 1}, tmp_path)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_value_that_is_not_modelled_is_refused(model_type, tmp_path):
    wrong = UNMODELLED[SAME.get(model_type, model_type)]
    with pytest.raises(Exception) as caught:
        read(config_of(model_type) | wrong, tmp_path)
    message = str(caught.value)
    assert type(caught.value).__module__ == "edgeformer.errors"
    words = [*wrong, *(k for v in wrong.values() if isinstance(v, dict) for k in v), "heads", "experts", "rope"]
    assert any(word in message for word in words), message


DIVISORS = {"gemma2": "query_pre_attn_scalar", "gemma3_text": "query_pre_attn_scalar", "granite": "logits_scaling"}


@pytest.mark.parametrize("model_type", DIVISORS)
@pytest.mark.parametrize("value", [0, -4])
def test_divisors_have_to_be_positive(model_type, value, tmp_path):
    key = DIVISORS[model_type]
    with pytest.raises(ConfigError, match=f"{key} must be positive"):
        read(config_of(model_type) | {key: value}, tmp_path)


def test_gemmas_first_configs_mean_the_tanh_approximation(tmp_path):
    """transformers reads them so, and writes the other name, so no case of its own can show it."""
    config = config_of("gemma")
    for act, more in (("gelu", {}), ("gelu", {"hidden_activation": "gelu_pytorch_tanh"}), ("gelu_pytorch_tanh", {})):
        assert read(config | {"hidden_act": act} | more, tmp_path).blocks[0].ffn.act == "gelu_tanh"
    with pytest.raises(ConfigError, match="two activations"):
        read(config | {"hidden_act": "gelu", "hidden_activation": "relu"}, tmp_path)


def test_defaults_are_those_of_the_config_classes(tmp_path):
    """Of keys that a config.json may lack: what transformers fills in is read as what edgeformer fills in."""
    for model_type, keys in DEFAULTS.items():
        config = config_of(model_type)
        bare = {k: v for k, v in config.items() if k not in keys}
        filled = bare | {k: getattr(transformers.AutoConfig.for_model(model_type), k) for k in keys}
        assert read(bare, tmp_path) == read(filled, tmp_path), model_type


DEFAULTS = {
    "glm": ["attention_bias", "rms_norm_eps", "hidden_act"],
    "glm4": ["attention_bias", "rms_norm_eps", "hidden_act"],
    "gemma": ["attention_bias", "hidden_act", "rms_norm_eps", "tie_word_embeddings"],
    "gemma2": ["query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "hidden_activation"],
    "gemma3_text": ["query_pre_attn_scalar", "final_logit_softcapping", "hidden_activation"],
    "phi": ["hidden_act", "qk_layernorm", "layer_norm_eps", "tie_word_embeddings"],
    "stablelm": ["use_qkv_bias", "use_parallel_residual", "layer_norm_eps", "qk_layernorm"],
    "starcoder2": ["use_bias", "norm_epsilon", "hidden_act", "tie_word_embeddings"],
    "cohere": ["logit_scale", "use_qk_norm", "layer_norm_eps", "attention_bias", "tie_word_embeddings"],
    "granite": [
        "logits_scaling",
        "embedding_multiplier",
        "residual_multiplier",
        "attention_multiplier",
        "rms_norm_eps",
    ],
    "olmo2": ["rms_norm_eps", "attention_bias", "tie_word_embeddings"],
    "smollm3": ["attention_bias", "mlp_bias", "tie_word_embeddings", "rms_norm_eps"],
    "mixtral": ["rms_norm_eps", "num_experts_per_tok", "tie_word_embeddings"],
    "qwen3_moe": ["norm_topk_prob", "decoder_sparse_step", "rms_norm_eps"],
    "deepseek_v2": ["routed_scaling_factor", "topk_method", "attention_bias"],
    "opt": ["do_layer_norm_before", "enable_bias", "activation_function"],
    "falcon": ["multi_query", "parallel_attn", "new_decoder_architecture", "bias", "activation"],
    "gpt_neox": ["use_parallel_residual", "attention_bias", "layer_norm_eps", "hidden_act"],
    "modernbert": ["norm_bias", "mlp_bias", "attention_bias", "local_attention", "norm_eps"],
    "roberta": ["layer_norm_eps", "type_vocab_size", "hidden_act"],
    "bart": ["scale_embedding", "activation_function"],
    "t5": [
        "feed_forward_proj",
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        "layer_norm_epsilon",
    ],
}


@pytest.mark.parametrize("model_type", CASES)
def test_gradients_against_transformers(model_type, tmp_path):
    """Every parameter's gradient of a language model's loss. transformers' are saved as if they were weights, so that our own
    reading of a checkpoint says which is which."""
    config = settings(model_type, next(iter(CASES[model_type].values())))
    config |= {key: 0.1 for key in ("initializer_range", "init_std") if key in config}
    model = hf_model(tmp_path / "hf", model_type, **config)  # in eval mode: no dropout
    loaded = load(tmp_path / "hf")
    ids = torch.from_numpy(random_ids(80, 2, 40)) + 10  # transformers keeps a padding token's row from learning

    def loss(logits):
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    loss(model(ids).logits).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
    model.save_pretrained(tmp_path / "gradients")
    expected = load(tmp_path / "gradients").require_weights()
    ours = build_torch(loaded).eval()
    loss(ours(ids)).backward()
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert found.keys() == dict(expected).keys()
    largest = max(np.abs(x).max() for x in expected.values())
    for name, gradient in found.items():
        assert gradient is not None, name
        scale = np.abs(expected[name]).max()
        assert scale > 0, name
        if name.endswith(".k.bias"):  # without rotation it moves all scores of a query alike: its gradient is rounding
            scale = max(scale, 1e-3 * largest)
        assert np.abs(gradient.numpy() - expected[name]).max() <= tolerances.GRADIENT * scale, name
