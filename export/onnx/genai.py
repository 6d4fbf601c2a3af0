"""`genai_config.json`: runs any decoder in ONNX Runtime GenAI, as its generic model type `decoder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from edgeformer.checkpoint.companions.generation import generation_defaults
from edgeformer.checkpoint.companions.special import special_ids
from edgeformer.checkpoint.companions.tokenizer import has_tokenizer, load_tokenizer
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import InputError
from edgeformer.layers.gqa import GQA
from edgeformer.ops.sampling import Rules, Sampling
from edgeformer.spec import Model, layers
from edgeformer.spec.task import Task


def genai_config(
    loaded: LoadedModel,
    context: int,
    inputs: list[str],
    shared: bool,
    eos: Sequence[int] = (),
    windows: Mapping[str, int] | None = None,
) -> tuple[dict[str, Any] | None, list[str]]:
    """The GenAI config, and notes.

    Without an end-of-text id, GenAI stops at the padding token or at token 0: if no file of the model defines one, no config is
    written unless `eos` gives it.

    Args:
        loaded: the model.
        context: longest sequence.
        inputs: names of the graph's inputs.
        shared: whether the graph's past and present may share one buffer.
        eos: the user's end-of-text ids; defaults to the model's own.
        windows: layer path -> window of each windowed KV cache.

    Returns:
        The config, or None for models that GenAI's decoder type doesn't support: non-decoders, and KV caches of several sizes.
        And notes for the user.
    """
    spec = loaded.spec
    attentions = [layer for _, layer, _ in layers(spec) if layer.cache()]
    if spec.task != Task.TEXT_GENERATION or not all(isinstance(a, GQA) for a in attentions):
        return None, []
    shapes = {(a.heads, a.kv_heads, a.head_dim) for a in attentions if isinstance(a, GQA)}
    if len(shapes) != 1:
        return None, []
    ((heads, kv_heads, head_dim),) = shapes
    ids = special_ids(loaded.around)
    ends = tuple(eos) or ids.eos
    if not ends:
        return None, [
            "no genai_config.json: no file of this model defines an end-of-text token, and ONNX Runtime GenAI would assume token"
            " 0; set it with --eos-id ID"
        ]
    others = {f"{name}_token_id": i for name in ("bos", "pad") if isinstance(i := getattr(ids, name), int)}
    defaults = generation_defaults(loaded.around)
    notes = list(defaults.notes)
    if has_tokenizer(loaded.around) and (first := _put_before(loaded)) is not None:
        notes.append(
            f"ONNX Runtime GenAI's tokenizer doesn't prepend {first}, which the model's own tokenizer does: put it into the"
            " prompt (a chat template may already contain it)"
        )
    config = _config(spec, context, inputs, (heads, kv_heads, head_dim, len(attentions)))
    if windows:
        paths = [path for path, layer, _ in layers(spec) if layer.cache()]
        # GenAI has one size for all windowed caches; the operator takes buffers above the window, too
        config["model"]["decoder"]["sliding_window"] = {
            "window_size": max(windows.values()),
            "slide_key_value_cache": False,
            "slide_inputs": False,
            "layers": [n for n, path in enumerate(paths) if path in windows],
        }
    config["model"] |= {"eos_token_id": ends[0] if len(ends) == 1 else list(ends), **others}
    config["search"], more = _search(defaults.sampling, context, shared)
    return config, notes + more


def _put_before(loaded: LoadedModel) -> str | None:
    """The special token that the model's tokenizer prepends to a text; None if it prepends none."""
    try:
        tokenizer = load_tokenizer(loaded.around)
    except InputError:
        return None
    bare, full = tokenizer.encode("a", special=False), tokenizer.encode("a")
    return tokenizer.decode(full[:1], special=True) if full and full[:1] != bare[:1] else None


def _search(sampling: Sampling, context: int, shared: bool) -> tuple[dict[str, Any], list[str]]:
    """GenAI's default search options from the generation defaults, and a note on those it doesn't support."""
    rules = sampling.rules or Rules()
    search: dict[str, Any] = {
        "do_sample": sampling.temperature > 0,
        "max_length": context,
        "num_beams": 1,
        "past_present_share_buffer": shared,
        "temperature": sampling.temperature or 1.0,
        "top_k": (sampling.top_k or 0) if sampling.temperature else 1,
        "top_p": sampling.top_p,
    }
    if rules.repetition_penalty != 1:
        search["repetition_penalty"] = rules.repetition_penalty
    if rules.min_length:
        search["min_length"] = rules.min_length
    told = replace(rules, repetition_penalty=1.0, min_length=0, eos=())
    lost = [f.name for f in fields(Rules) if getattr(told, f.name) != f.default]
    lost += ["min_p"] if sampling.min_p else []
    notes = [f"ONNX Runtime GenAI doesn't support these generation defaults: {', '.join(lost)}"] if lost else []
    return search, notes


def _config(spec: Model, context: int, inputs: list[str], shape: tuple[int, int, int, int]) -> dict[str, Any]:
    heads, kv_heads, head_dim, count = shape
    return {
        "model": {
            "context_length": context,
            "vocab_size": spec.vocab,
            "type": "decoder",
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": head_dim,
                "hidden_size": spec.width,
                "num_attention_heads": heads,
                "num_hidden_layers": count,
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
    }
