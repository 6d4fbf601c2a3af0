"""generation_config.json: the generation defaults that a model's authors chose.

The rules of transformers' `generate` that change which token is chosen apply in its order; notes name the unsupported ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgeformer.checkpoint.companions.files import GENERATION, Companions
from edgeformer.checkpoint.companions.special import special_ids
from edgeformer.errors import ConfigError, InputError
from edgeformer.ops.sampling import Rules, Sampling

TOP_K = 50
"""transformers' top_k where a config sets do_sample and no top_k."""
_NOT_DONE: dict[str, Any] = {  # key -> the value that disables it
    "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": None, "guidance_scale": None, "sequence_bias": None,
    "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None, "exponential_decay_length_penalty": None,
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "constraints": None, "force_words_ids": None,
    "stop_strings": None, "token_healing": False, "watermarking_config": None, "dola_layers": None, "diversity_penalty": 0.0,
    "prompt_lookup_num_tokens": None, "low_memory": None,
}  # fmt: skip
_READ = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids",
    "min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class GenerationDefaults:
    """How tokens are chosen by default, and notes on settings that are not supported."""

    sampling: Sampling = Sampling()
    notes: list[str] = field(default_factory=list, compare=False)


def generation_settings(around: Companions) -> dict[str, Any]:
    """The keys of generation_config.json that change which token is chosen; without that file, config.json's, as in older
    models."""
    data = around.read(GENERATION) if around.find(GENERATION) is not None else around.config or {}
    keys = {*_READ, *_NOT_DONE}
    return {k: v for k, v in data.items() if k in keys and v is not None}


def generation_defaults(around: Companions) -> GenerationDefaults:
    """A model's generation defaults.

    Raises:
        ConfigError: a key has an invalid value.
    """
    data = generation_settings(around)
    where = around.find(GENERATION) or "config.json"

    def number(key: str, default: float) -> float:
        value = data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{where}: {key} must be a number, got {value!r}")
        return value

    def ids(key: str) -> tuple[int, ...]:
        value = data.get(key, [])
        values = value if isinstance(value, list) else [value]
        if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
            raise ConfigError(f"{where}: {key} must be token ids, got {value!r}")
        return tuple(v for v in values if v >= 0)

    words = data.get("bad_words_ids", [])
    if not isinstance(words, list) or not all(
        isinstance(w, list) and w and all(isinstance(i, int) and not isinstance(i, bool) for i in w) for w in words
    ):
        raise ConfigError(f"{where}: bad_words_ids must be a list of lists of token ids, got {str(words)[:80]}")
    eos = special_ids(around).eos
    try:
        rules = Rules(
            repetition_penalty=float(number("repetition_penalty", 1.0)),
            no_repeat_ngram=int(number("no_repeat_ngram_size", 0)),
            bad_words=tuple(tuple(word) for word in words if not (len(word) == 1 and word[0] in eos)),
            min_length=int(number("min_length", 0)),
            min_new=int(number("min_new_tokens", 0)),
            forced_bos=next(iter(ids("forced_bos_token_id")), None),
            forced_eos=ids("forced_eos_token_id"),
            suppressed=ids("suppress_tokens"),
            suppressed_first=ids("begin_suppress_tokens"),
            eos=eos,
        )
    except InputError as e:
        raise ConfigError(f"{where}: {e}") from e
    sampled = data.get("do_sample") is True
    try:
        sampling = Sampling(
            temperature=float(number("temperature", 1.0)) if sampled else 0.0,
            top_k=max(int(number("top_k", TOP_K)), 0) if sampled else 0,  # -1 is off in other tools' files
            top_p=float(number("top_p", 1.0)) if sampled else 1.0,
            min_p=float(number("min_p", 0.0)) if sampled else 0.0,
            rules=rules if rules != Rules(eos=eos) else None,
        )
    except InputError as e:
        raise ConfigError(f"{where}: {e}") from e
    asked = {k: data[k] for k, idle in _NOT_DONE.items() if k in data and data[k] not in (idle, None)}
    if not sampled:  # sampling warpers have no effect in greedy search
        asked = {k: v for k, v in asked.items() if k not in ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")}
    notes = []
    if asked:
        said = ", ".join(f"{k} = {v!r}" for k, v in asked.items())
        beams = "; tokens are chosen without beam search" if "num_beams" in asked else ""
        notes.append(f"settings that transformers' generate applies and edgeformer doesn't: {said} ({where}){beams}")
    return GenerationDefaults(sampling, notes)
