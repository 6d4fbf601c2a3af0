"""`genai_config.json`: what ONNX Runtime GenAI needs to run a decoder that it doesn't know, as its generic `decoder` type."""

from __future__ import annotations

from typing import Any

from edgeformer.checkpoint import LoadedModel
from edgeformer.layers.gqa import GQA
from edgeformer.spec import layers
from edgeformer.special_tokens import special_ids


def genai_config(loaded: LoadedModel, context: int, inputs: list[str], shared: bool) -> dict[str, Any] | None:
    """The config; `inputs` are the graph's; `shared`: whether its past and present may be one buffer.

    None for what GenAI's decoder type can't hold: a model that is no decoder, or one with caches of several sizes.
    """
    spec = loaded.spec
    attentions = [layer for _, layer, _ in layers(spec) if layer.cache()]
    if spec.task != "text-generation" or not all(isinstance(a, GQA) for a in attentions):
        return None
    shapes = {(a.heads, a.kv_heads, a.head_dim) for a in attentions if isinstance(a, GQA)}
    if len(shapes) != 1:
        return None
    ((heads, kv_heads, head_dim),) = shapes
    ids = special_ids(loaded.folder, loaded.config)
    eos = ids["eos"] if ids["eos"] is not None else 0
    pad = ids["pad"] if ids["pad"] is not None else (eos[0] if isinstance(eos, list) else eos)
    return {
        "model": {
            "bos_token_id": ids["bos"] if ids["bos"] is not None else 0,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "context_length": context,
            "vocab_size": spec.vocab,
            "type": "decoder",
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": head_dim,
                "hidden_size": spec.width,
                "num_attention_heads": heads,
                "num_hidden_layers": len(attentions),
                "num_key_value_heads": kv_heads,
                "inputs": {
                    **{n: n for n in ("input_ids", "attention_mask", "position_ids") if n in inputs},
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": context,
            "num_beams": 1,
            "past_present_share_buffer": shared,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
