"""Convert fairseq RoBERTa checkpoints (`checkpoint_best.pt`: settings beside a state dict) to transformers' names and config.

The names are fairseq's modules (Ott et al. 2019, arXiv 1904.01038); the mapping is the one transformers imported RoBERTa with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from edgeformer.errors import CheckpointError

_RENAMED = (
    (r"^(?:encoder|decoder)\.sentence_encoder\.embed_tokens\.", "roberta.embeddings.word_embeddings."),
    (r"^(?:encoder|decoder)\.sentence_encoder\.embed_positions\.", "roberta.embeddings.position_embeddings."),
    (
        r"^(?:encoder|decoder)\.sentence_encoder\.(?:emb_layer_norm|layernorm_embedding)\.",
        "roberta.embeddings.LayerNorm.",
    ),
    (r"^(?:encoder|decoder)\.sentence_encoder\.layers\.", "roberta.encoder.layer."),
    (r"^(?:encoder|decoder)\.lm_head\.weight$", "lm_head.decoder.weight"),
    (r"^(?:encoder|decoder)\.lm_head\.", "lm_head."),
    (r"\.self_attn\.q_proj\.", ".attention.self.query."),
    (r"\.self_attn\.k_proj\.", ".attention.self.key."),
    (r"\.self_attn\.v_proj\.", ".attention.self.value."),
    (r"\.self_attn\.out_proj\.", ".attention.output.dense."),
    (r"\.self_attn_layer_norm\.", ".attention.output.LayerNorm."),
    (r"(\.layer\.\d+)\.fc1\.", r"\1.intermediate.dense."),
    (r"(\.layer\.\d+)\.fc2\.", r"\1.output.dense."),
    (r"(\.layer\.\d+)\.final_layer_norm\.", r"\1.output.LayerNorm."),
)
_DROPPED = re.compile(r"classification_heads\.|\._float_tensor$|sentence_encoder\.version$")
PAD = 1
"""fairseq's dictionaries begin with <s>, <pad>, </s>, <unk>."""


def is_fairseq(state: object) -> TypeGuard[dict[str, Any]]:
    """Whether this is a fairseq checkpoint: settings and tensors under two keys."""
    return isinstance(state, dict) and isinstance(state.get("model"), Mapping) and bool({"args", "cfg"} & state.keys())


def roberta(state: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors under transformers' names, and the config.json.

    Raises:
        CheckpointError: the architecture is not RoBERTa, or has unknown, missing or untied tensors.
    """
    import torch

    settings = _settings(state)
    arch = str(settings.get("arch") or settings.get("_name") or "")
    if "roberta" not in arch:
        raise CheckpointError(
            f"{where} has the fairseq architecture {arch!r}, which edgeformer doesn't support yet; only roberta is supported"
        )
    tensors: dict[str, Any] = {}
    for name, tensor in state["model"].items():
        if _DROPPED.search(name):
            continue
        new = name
        for pattern, by in _RENAMED:
            new = re.sub(pattern, by, new)
        if new == name:
            raise CheckpointError(f"{where} holds {name}, which is not a tensor of fairseq's RoBERTa")
        tensors[new] = tensor
    try:
        embed, positions = (tensors[f"roberta.embeddings.{n}_embeddings.weight"] for n in ("word", "position"))
        layers = 1 + max(int(m[1]) for n in tensors if (m := re.search(r"\.layer\.(\d+)\.", n)))
        hidden = tensors["roberta.encoder.layer.0.intermediate.dense.weight"].shape[0]
        heads = int(settings["encoder_attention_heads"])
    except (KeyError, ValueError, TypeError) as e:
        raise CheckpointError(f"{where} is not a complete fairseq RoBERTa: {e}") from e
    if settings.get("untie_weights_roberta"):
        raise CheckpointError(f"{where} has an untied output head (untie_weights_roberta), which is not supported yet")
    tensors["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(
        1, embed.shape[1]
    )  # fairseq has no token types
    config = {
        "model_type": "roberta",
        "architectures": ["RobertaForMaskedLM"],
        "vocab_size": embed.shape[0],
        "hidden_size": embed.shape[1],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "hidden_act": str(settings.get("activation_fn", "gelu")),
        "max_position_embeddings": positions.shape[0],
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": float(settings.get("dropout", 0.1)),
        "attention_probs_dropout_prob": float(settings.get("attention_dropout", 0.1)),
        "bos_token_id": 0,
        "pad_token_id": PAD,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    }
    return tensors, config


def _settings(state: dict[str, Any]) -> dict[str, Any]:
    """The model's settings: a namespace in old versions, a nested dict in newer ones."""
    args = state.get("args")
    if args is not None:
        return dict(args if isinstance(args, Mapping) else vars(args))
    model = (state.get("cfg") or {}).get("model") or {}
    return dict(model if isinstance(model, Mapping) else vars(model))
