"""T3: every family against transformers, on odd configs, in every back end, cached and uncached, padded either way.

Oracle: transformers in float32 on each row's real tokens alone, so padding can't hide in it.
"""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from support import TINY, hf_logits, load_tiny, random_ids, run_cached, sessions

pytest.importorskip("transformers")

T, PREFILL = 160, 100
LONG = list(np.linspace(1.5, 6.0, 8))
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
DECODERS = {
    "llama-groups-of-3": ("llama", {"head_dim": 16}),
    "llama-mqa-bias-gelu-linear": (
        "llama",
        dict(
            head_dim=24,
            num_key_value_heads=1,
            attention_bias=True,
            mlp_bias=True,
            hidden_act="gelu",
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        ),
    ),
    "llama-mha-llama3": (
        "llama",
        dict(
            head_dim=32,
            num_key_value_heads=6,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ),
    "llama-yarn-relu-odd-head": (
        "llama",
        dict(
            head_dim=20,
            hidden_act="relu",
            rope_parameters=YARN,
        ),
    ),
    "mistral-window": ("mistral", dict(sliding_window=32, head_dim=16)),
    "mistral-no-window-tied": ("mistral", dict(sliding_window=None, head_dim=8, tie_word_embeddings=True)),
    "mistral-narrow-window-odd-head": (
        "mistral",
        dict(sliding_window=7, head_dim=24, num_key_value_heads=1, hidden_act="gelu_pytorch_tanh"),
    ),
    "mistral-window-linear": (
        "mistral",
        dict(
            sliding_window=50,
            head_dim=16,
            num_key_value_heads=6,
            rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
        ),
    ),
    "qwen2-plain": ("qwen2", dict(hidden_size=96)),
    "qwen2-mixed-windows": (
        "qwen2",
        dict(
            hidden_size=96,
            num_hidden_layers=3,
            use_sliding_window=True,
            sliding_window=20,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
    ),
    "qwen2-max-window-layers-tied": (
        "qwen2",
        dict(use_sliding_window=True, sliding_window=33, max_window_layers=1, tie_word_embeddings=True),
    ),
    "qwen2-yarn-mqa-relu": (
        "qwen2",
        dict(
            num_key_value_heads=1,
            hidden_act="relu",
            rope_parameters=YARN,
        ),
    ),
    "qwen3-plain": ("qwen3", dict(head_dim=16)),
    "qwen3-bias-odd-head": ("qwen3", dict(head_dim=24, attention_bias=True, num_key_value_heads=6)),
    "qwen3-mixed-windows-tied": (
        "qwen3",
        dict(
            head_dim=32,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ),
    "qwen3-mqa-gelu-linear": (
        "qwen3",
        dict(
            head_dim=40,
            num_key_value_heads=1,
            hidden_act="gelu",
            rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 1e6},
        ),
    ),
    "gpt2-plain": ("gpt2", {}),
    "gpt2-relu-inner-untied": ("gpt2", dict(activation_function="relu", n_inner=72, tie_word_embeddings=False)),
    "gpt2-erf-gelu-odd-head": ("gpt2", dict(n_embd=36, n_head=3, activation_function="gelu", n_layer=3)),
    "gpt2-one-head-tanh": ("gpt2", dict(n_head=1, activation_function="tanh", layer_norm_epsilon=1e-3)),
}


def settings(model_type: str, config: dict) -> dict:
    if model_type == "gpt2":
        base = {"n_embd": 48, "n_head": 6, "n_layer": 2, "n_positions": 256, "vocab_size": 97, "initializer_range": 0.2}
        return base | config
    return TINY | config


@pytest.mark.parametrize("case", DECODERS)
def test_decoder(case, tmp_path):
    model_type, config = DECODERS[case]
    loaded, hf = load_tiny(tmp_path / "hf", model_type, **settings(model_type, config))
    ids = random_ids(97, 3, T)
    # row 1 padded on the left; row 2 on the right: at the end of the sequence, or at the end of a prompt that goes on
    ended, resumed = np.ones_like(ids), np.ones_like(ids)
    ended[1, :13] = resumed[1, :13] = 0
    ended[2, T - 12 :] = 0
    resumed[2, PREFILL - 12 : PREFILL] = 0
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
                worst = np.abs(logits[row, real] - expected).max()
                assert worst <= tolerances.FAMILY, f"{name}, {how}, row {row}: {worst:.2e}"


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


BERTS = {
    "plain": {},
    "relu-3-types-odd-head": dict(hidden_act="relu", type_vocab_size=3, hidden_size=36, num_attention_heads=3),
    "tanh-gelu-1-layer-1-head": dict(hidden_act="gelu_new", num_hidden_layers=1, num_attention_heads=1),
    "large-eps-wide-ffn": dict(layer_norm_eps=1e-3, intermediate_size=200, num_attention_heads=12),
}


@pytest.mark.parametrize("case", BERTS)
def test_bert(case, tmp_path):
    import torch

    config = {k: v for k, v in TINY.items() if k != "num_key_value_heads"} | BERTS[case]
    loaded, hf = load_tiny(tmp_path / "hf", "bert", **config)
    ids = random_ids(97, 3, T)
    mask, types = np.ones_like(ids), random_ids(config.get("type_vocab_size", 2), 3, T, seed=1)
    mask[1, T - 20 :], mask[2, :11] = 0, 0
    with torch.no_grad():
        expected = hf(*(torch.from_numpy(x) for x in (ids, mask, types)))
    real = mask.astype(bool)
    for name, session in sessions(loaded, tmp_path).items():
        outputs = session.encode({"input_ids": ids, "attention_mask": mask, "token_type_ids": types})
        hidden = np.abs(outputs["last_hidden_state"] - expected.last_hidden_state.numpy())[real].max()
        pooled = np.abs(outputs["pooler_output"] - expected.pooler_output.numpy()).max()
        assert max(hidden, pooled) <= tolerances.FAMILY, f"{name}: {hidden:.2e} {pooled:.2e}"
