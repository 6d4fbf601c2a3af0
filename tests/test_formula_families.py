"""T3: the families that transformers has no class for. Oracles: the published formula in float64, and where another class of
transformers is the same maths under other names, that class, too."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tolerances
from family_cases import TINY
from safetensors.numpy import load_file, save_file
from support import hf_logits, hf_model, random_ids, record_errors, run_cached, sessions

from edgeformer.checkpoint.loading import load
from edgeformer.errors import InputError
from edgeformer.verification.parity import verify

pytest.importorskip("transformers")

T = 160


def check(folder, logits, tmp_path, case):
    """Our back ends against `logits(ids [T]) -> [T, V]`, cached and left-padded."""
    errors: dict[str, float] = {}
    loaded = load(folder)
    ids = random_ids(97, 2, T)
    valid = np.ones_like(ids)
    valid[1, :13] = 0
    expected = [logits(ids[row, valid[row].astype(bool)]) for row in range(2)]
    for name, session in sessions(loaded, tmp_path, batch=2).items():
        whole, cached = session.forward(ids, valid, all_positions=True), run_cached(session, ids, valid, 100)
        for how, found in (("uncached", whole), ("cached", cached)):
            for row, kind in enumerate((how, "left-padded")):
                worst = float(np.abs(found[row, valid[row].astype(bool)] - expected[row]).max())
                errors[f"{name} {kind}"] = max(errors.get(f"{name} {kind}", 0.0), worst)
                assert worst <= tolerances.FAMILY, f"{name}, row {row}: {worst:.2e}"
    record_errors("families", case, errors)


MINICPM = {
    "1b": dict(scale_emb=12, scale_depth=1.4, dim_model_base=24),
    "groups-untied": dict(
        scale_emb=3, scale_depth=0.5, dim_model_base=96, num_key_value_heads=1, tie_word_embeddings=False
    ),
    "no-multipliers-gelu": dict(num_key_value_heads=6, hidden_act="gelu", attention_bias=True),
}


@pytest.mark.parametrize("case", MINICPM)
def test_minicpm(case, tmp_path):
    """Granite's class computes the same with its own multipliers."""
    own = {"tie_word_embeddings": True} | MINICPM[case]
    count, width = TINY["num_hidden_layers"], TINY["hidden_size"]
    scales = {k: own[k] for k in ("scale_emb", "scale_depth", "dim_model_base") if k in own}
    shared = TINY | {k: v for k, v in own.items() if k not in scales}
    granite = dict(
        embedding_multiplier=float(scales.get("scale_emb", 1)),
        residual_multiplier=scales.get("scale_depth", count**0.5) / count**0.5,
        logits_scaling=width / scales.get("dim_model_base", width),
        attention_multiplier=(width // 6) ** -0.5,
    )
    model = hf_model(tmp_path / "hf", "granite", **shared, **granite)
    config = shared | scales | {"model_type": "minicpm", "rope_theta": 10_000.0}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    check(tmp_path / "hf", lambda ids: hf_logits(model, ids), tmp_path, f"minicpm@{case}")


CHATGLM = {
    "6b": dict(num_key_value_heads=2, attention_bias=True),
    "mha": dict(num_key_value_heads=6, attention_bias=False),
    "one-group-stretched": dict(num_key_value_heads=1, attention_bias=True, rope_theta=500_000.0),
}
GLM_NAMES = {
    "model.embed_tokens.weight": "transformer.embedding.word_embeddings.weight",
    "model.norm.weight": "transformer.encoder.final_layernorm.weight",
    "lm_head.weight": "transformer.output_layer.weight",
    "self_attn.o_proj.weight": "self_attention.dense.weight",
    "mlp.gate_up_proj.weight": "mlp.dense_h_to_4h.weight",
    "mlp.down_proj.weight": "mlp.dense_4h_to_h.weight",
}


@pytest.mark.parametrize("case", CHATGLM)
def test_chatglm(case, tmp_path):
    """The class `glm` of transformers is GLM-4-9B with q, k and v apart."""
    own = dict(CHATGLM[case])
    theta = own.pop("rope_theta", 10_000.0)
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}
    shape = TINY | own | {"head_dim": 16, "pad_token_id": 0, "rope_parameters": rope, "rms_norm_eps": 1e-5}
    model = hf_model(tmp_path / "glm", "glm", **shape)
    stored, out = load_file(tmp_path / "glm" / "model.safetensors"), {}
    for i in range(TINY["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            parts = [stored.pop(f"model.layers.{i}.self_attn.{n}_proj.{kind}", None) for n in "qkv"]
            if parts[0] is not None:
                name = f"transformer.encoder.layers.{i}.self_attention.query_key_value.{kind}"
                out[name] = np.concatenate(parts)
    for name, x in stored.items():
        for theirs, ours in GLM_NAMES.items():
            name = name.replace(theirs, ours)
        out[name.replace("model.layers.", "transformer.encoder.layers.")] = x
    out["transformer.rotary_pos_emb.inv_freq"] = np.zeros(4, np.float32)  # a buffer that checkpoints have
    folder = tmp_path / "chatglm"
    folder.mkdir()
    save_file(out, folder / "model.safetensors")
    config = {
        "model_type": "chatglm", "num_layers": 2, "padded_vocab_size": 97, "hidden_size": 48, "ffn_hidden_size": 80,
        "kv_channels": 16, "num_attention_heads": 6, "seq_length": 256, "layernorm_epsilon": 1e-5, "rmsnorm": True,
        "multi_query_attention": own["num_key_value_heads"] != 6, "multi_query_group_num": own["num_key_value_heads"],
        "add_qkv_bias": own["attention_bias"], "add_bias_linear": False, "rope_ratio": theta / 10_000.0,
        "post_layer_norm": True, "original_rope": True, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    check(folder, lambda ids: hf_logits(model, ids), tmp_path, f"chatglm@{case}")


OPENELM = {
    "growing": dict(num_query_heads=[2, 3, 4], num_kv_heads=[1, 1, 2], ffn_multipliers=[0.5, 1.0, 2.0]),
    "untied-relu-plain-heads": dict(
        num_query_heads=[4, 4, 6], num_kv_heads=[4, 2, 3], ffn_multipliers=[1.0, 1.7, 3.1], normalize_qk_projections=False,
        share_input_output_layers=False, activation_fn_name="relu",
    ),
    "odd-head": dict(
        num_query_heads=[3, 3, 3], num_kv_heads=[1, 3, 1], ffn_multipliers=[2.2, 0.4, 1.0], head_dim=20,
        rope_freq_constant=500.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPENELM)
def test_openelm(case, tmp_path):
    """The published formula, head by head in float64."""
    config = {
        "model_type": "openelm", "num_transformer_layers": 3, "model_dim": 48, "head_dim": 16, "vocab_size": 97,
        "max_context_length": 256, "ffn_dim_divisor": 8, "ffn_with_glu": True, "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True, "share_input_output_layers": True, "activation_fn_name": "swish",
        "rope_freq_constant": 10_000, "rope_max_length": 512, "qkv_multipliers": [0.5, 1.0], "num_gqa_groups": 4,
        "initializer_range": 0.02,
    } | OPENELM[case]  # fmt: skip
    rng = np.random.default_rng(0)
    dim, width, stored = config["head_dim"], 48, {}

    def make(name, *shape, around=0.0):
        stored[name] = (rng.standard_normal(shape) * 0.2 + around).astype(np.float32)

    make("transformer.token_embeddings.weight", 97, width)
    make("transformer.norm.weight", width, around=1.0)
    if not config["share_input_output_layers"]:
        make("lm_head.weight", 97, width)
    hidden = []
    for i, (h, g, m) in enumerate(
        zip(config["num_query_heads"], config["num_kv_heads"], config["ffn_multipliers"], strict=True)
    ):
        nearest = max(8, int(m * width + 4) // 8 * 8)
        hidden.append(nearest + 8 if nearest < 0.9 * m * width else nearest)
        at = f"transformer.layers.{i}."
        make(at + "attn.qkv_proj.weight", (h + 2 * g) * dim, width)
        make(at + "attn.out_proj.weight", width, h * dim)
        make(at + "ffn.proj_1.weight", 2 * hidden[-1], width)
        make(at + "ffn.proj_2.weight", width, hidden[-1])
        for name in ("attn_norm", "ffn_norm"):
            make(f"{at}{name}.weight", width, around=1.0)
        if config["normalize_qk_projections"]:
            for name in ("q_norm", "k_norm"):
                make(f"{at}attn.{name}.weight", dim, around=1.0)
    folder = tmp_path / "openelm"
    folder.mkdir()
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    check(
        folder,
        lambda ids: _openelm(config, {k: v.astype(np.float64) for k, v in stored.items()}, ids),
        tmp_path,
        f"openelm@{case}",
    )


def _openelm(config, w, ids):
    """[T] -> [T, V]."""
    dim, count = config["head_dim"], len(ids)

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight

    def act(x):
        return np.maximum(x, 0) if config["activation_fn_name"] == "relu" else x / (1 + np.exp(-x))

    angles = np.arange(count)[:, None] * config["rope_freq_constant"] ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angles), np.sin(angles)

    def rotate(x):
        a, b = x[:, : dim // 2], x[:, dim // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = w["transformer.token_embeddings.weight"][ids]
    for i, (h, g) in enumerate(zip(config["num_query_heads"], config["num_kv_heads"], strict=True)):
        at = f"transformer.layers.{i}."
        qkv = norm(x, w[at + "attn_norm.weight"]) @ w[at + "attn.qkv_proj.weight"].T
        heads = qkv.reshape(count, h + 2 * g, dim)
        out = []
        for j in range(h):
            q, k, v = heads[:, j], heads[:, h + j // (h // g)], heads[:, h + g + j // (h // g)]
            if config["normalize_qk_projections"]:
                q, k = norm(q, w[at + "attn.q_norm.weight"]), norm(k, w[at + "attn.k_norm.weight"])
            scores = rotate(q) @ rotate(k).T / np.sqrt(dim)
            scores[np.triu_indices(count, 1)] = -np.inf
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(p / p.sum(-1, keepdims=True) @ v)
        x = x + np.concatenate(out, -1) @ w[at + "attn.out_proj.weight"].T
        gate, up = np.split(norm(x, w[at + "ffn_norm.weight"]) @ w[at + "ffn.proj_1.weight"].T, 2, -1)
        x = x + act(gate) * up @ w[at + "ffn.proj_2.weight"].T
    return norm(x, w["transformer.norm.weight"]) @ w.get("lm_head.weight", w["transformer.token_embeddings.weight"]).T


CHATGLM_6B = {"three-layers": (3, 6, 48, 256), "odd-heads": (2, 3, 36, 80), "one-layer-one-head": (1, 1, 32, 40)}


@pytest.mark.parametrize("case", CHATGLM_6B)
def test_chatglm_6b(case, tmp_path):
    """The first generation, by its published formula head by head in float64; a prefix of 21 tokens."""
    layers, heads, width, inner = CHATGLM_6B[case]
    config = {
        "model_type": "chatglm", "num_layers": layers, "num_attention_heads": heads, "hidden_size": width, "vocab_size": 97,
        "inner_hidden_size": inner, "layernorm_epsilon": 1e-5, "max_sequence_length": 256, "position_encoding_2d": True,
        "gmask_token_id": 95, "mask_token_id": 94, "pre_seq_len": None, "prefix_projection": False, "quantization_bit": 0,
    }  # fmt: skip
    rng, stored = np.random.default_rng(0), {}

    def make(name, *shape, around=0.0):
        stored[f"{name}.weight"] = (rng.standard_normal(shape) * 0.2 + around).astype(np.float32)
        if name not in ("transformer.word_embeddings", "lm_head"):
            stored[f"{name}.bias"] = (rng.standard_normal(shape[0]) * 0.2).astype(np.float32)

    make("transformer.word_embeddings", 97, width)
    make("lm_head", 97, width)
    make("transformer.final_layernorm", width, around=1.0)
    for i in range(layers):
        at = f"transformer.layers.{i}."
        make(at + "input_layernorm", width, around=1.0)
        make(at + "post_attention_layernorm", width, around=1.0)
        make(at + "attention.query_key_value", 3 * width, width)
        make(at + "attention.dense", width, width)
        make(at + "mlp.dense_h_to_4h", inner, width)
        make(at + "mlp.dense_4h_to_h", width, inner)
    folder = tmp_path / "chatglm"
    folder.mkdir()
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    exact = {name.removeprefix("transformer."): x.astype(np.float64) for name, x in stored.items()}
    ids, errors, loaded = random_ids(97, 2, T), {}, load(folder)
    expected = np.stack([_chatglm_6b(config, exact, row, 21) for row in ids])
    for name, session in sessions(loaded, tmp_path, batch=2).items():
        session.prefix_length = 21
        session.reset()
        whole, cached = session.forward(ids, all_positions=True), run_cached(session, ids, None, 100)
        for how, found in (("uncached", whole), ("cached", cached)):
            errors[f"{name} {how}"] = float(np.abs(found - expected).max())
            assert errors[f"{name} {how}"] <= tolerances.FAMILY, f"{name} {how}"
    record_errors("families", f"chatglm@6b-{case}", errors)
    assert verify(tmp_path / "onnx-portable", loaded, length=60, generate=12).verdict == "pass"
    with pytest.raises(InputError, match="whole prefix"):
        session.reset()
        session.forward(ids[:, :20])


def _chatglm_6b(config, w, ids, prefix):
    """[T] -> [T, V]: the published code, plainly."""
    count, heads, width = len(ids), config["num_attention_heads"], config["hidden_size"]
    dim, alpha = width // heads, (2 * config["num_layers"]) ** 0.5
    first = np.minimum(np.arange(count), prefix - 1)
    second = np.maximum(np.arange(count) - (prefix - 1), 0)
    seen = np.tril(np.ones((count, count), bool)) | (np.arange(count) < prefix)[None]

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def half(x, positions):  # rotary over one half of a head: pairs (i, i + a quarter of the head)
        n = x.shape[1] // 2
        angles = positions[:, None] * 10_000.0 ** (-np.arange(n) / n)
        a, b = x[:, :n], x[:, n:]
        return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)

    def rotate(x):
        return np.concatenate([half(x[:, : dim // 2], first), half(x[:, dim // 2 :], second)], -1)

    x = w["word_embeddings.weight"][ids]
    for i in range(config["num_layers"]):
        at = f"layers.{i}."
        x = norm(at + "input_layernorm", x)
        qkv = linear(at + "attention.query_key_value", x).reshape(count, heads, 3 * dim)
        out = []
        for h in range(heads):
            q, k, v = np.split(qkv[:, h], 3, -1)
            scores = np.where(seen, rotate(q) @ rotate(k).T / np.sqrt(dim), -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(p / p.sum(-1, keepdims=True) @ v)
        x = alpha * x + linear(at + "attention.dense", np.concatenate(out, -1))
        x = norm(at + "post_attention_layernorm", x)
        inner = linear(at + "mlp.dense_h_to_4h", x)
        inner = 0.5 * inner * (1 + np.tanh(0.7978845608028654 * inner * (1 + 0.044715 * inner * inner)))
        x = alpha * x + linear(at + "mlp.dense_4h_to_h", inner)
    return norm("final_layernorm", x) @ w["lm_head.weight"].T
