"""A strict reader of Hugging Face `config.json` files: an unread key is an error."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.files.json_file import read_json_file
from edgeformer.files.limits import MAX_LAYERS, MAX_SIZE
from edgeformer.files.quoting import listed, shown
from edgeformer.weights import foreign

_REQUIRED = object()

HARMLESS: dict[str, tuple[str, ...]] = {
    "labels: read with the head": (
        "_num_labels", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
        "sbert_ce_default_activation_function", "sentence_transformers", "num_choices",
        "classifier_activation", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
        "summary_type", "summary_use_proj",
    ),
    "generation: read from generation_config.json, or from here where there is none": (
        "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cls_token_id", "decoder_start_token_id", "diversity_penalty",
        "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
        "exponential_decay_length_penalty", "force_bos_token_to_be_generated", "forced_bos_token_id", "forced_eos_token_id",
        "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
        "num_return_sequences", "pad_token_id", "prefix", "remove_invalid_values", "repetition_penalty", "sep_token_id",
        "suppress_tokens", "task_specific_params", "temperature", "top_k", "top_p", "typical_p",
    ),
    "what a call gives back": (
        "output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate",
        "use_return_dict",
    ),
    "which code runs it, not what it computes": (
        "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_flash_attn_2_enabled",
        "attn_implementation", "auto_map", "custom_pipelines", "pretraining_tp", "tf_legacy_loss", "torchscript",
        "use_bfloat16",
        "use_cache", "use_flash_attn", "xla_device", "experts_implementation", "_experts_implementation",
        "_experts_implementation_internal",
    ),
    "where it comes from": (
        "_commit_hash", "_name_or_path", "architectures", "author", "created_date", "dtype", "is_llama_config", "language",
        "license", "model_type", "name", "save_step", "total_flos", "torch_dtype", "transformers.js_config",
        "transformers_version",
        "unsloth_fixed", "unsloth_version", "quantization_config_original", "model_name",
    ),
    "of transformers 2; today's versions read it no more": ("eos_token_ids",),
    "how it was trained": ("gradient_checkpointing", "output_past", "max_sequence_length"),
    "limits of the tokenizer": ("model_max_length", "tokenizer_class", "tokenizer_model_max_length", "tokenizer_padding_side"),
}  # fmt: skip
"""Keys that don't change the network in any family, by reason."""
_METADATA = frozenset(key for keys in HARMLESS.values() for key in keys)
# Base-class switches that would change the network: accepted only where they are off.
_MUST_BE = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "rope_interleaved": False,
    "tie_encoder_decoder": False,
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu",
    "linear": "identity",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""Hugging Face's activation names -> edgeformer's."""
HF_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "identity": "linear"}
"""edgeformer's names -> Hugging Face's, where they differ."""


class HfConfig:
    """A `config.json` that keeps track of which keys were read."""

    def __init__(
        self, data: dict[str, Any], where: str, stored: Collection[str] | None = None, *, without_head: bool = False
    ):
        if not isinstance(data, dict):
            raise ConfigError(f"{where} holds no JSON object")
        self.data, self.where = data, where
        self.stored = stored  # the names of the checkpoint's tensors, None without a checkpoint
        self.notes: list[str] = []  # for the user
        self.without_head = without_head  # build the body alone, whatever head the checkpoint has
        self.read: set[str] = set(_METADATA)
        self.ignored: set[str] = set()  # the family's own keys that don't change the network

    @property
    def model_type(self) -> str:
        """The family's name."""
        if not isinstance(self.data.get("model_type"), str):
            raise ConfigError(
                f'{self.where} has no model_type, which selects the family file; add it, such as "model_type": "bert"'
            )
        return self.data["model_type"]

    def take(self, key: str, default: object = _REQUIRED) -> Any:
        """The value of `key`; the family's default where it is absent."""
        self.read.add(key)
        if key in self.data:
            return self.data[key]
        if default is _REQUIRED:
            raise ConfigError(f"{self.where} lacks the key {key!r}, which {self.model_type} requires")
        return default

    def size(self, key: str, default: object = _REQUIRED, *, limit: int = MAX_SIZE) -> int:
        """A positive int, at most `limit`."""
        value = self.take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ConfigError(f"{self.where}: {key} must be a positive integer, got {shown(value)}")
        if value > limit:
            raise ConfigError(f"{self.where}: {key} is {shown(value)}; at most {limit:,} is supported")
        return value

    def layers(self, key: str, default: object = _REQUIRED) -> int:
        """The number of blocks in a stack: a positive int."""
        return self.size(key, default, limit=MAX_LAYERS)

    def optional_size(self, key: str, default: int | None = None) -> int | None:
        """A positive int, or None where the key is absent or null."""
        return None if self.take(key, default) is None else self.size(key, default)

    def number(self, key: str, default: float) -> float:
        """A finite number; null means the default."""
        value = self.take(key, default)
        if value is None:
            return default
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise ConfigError(f"{self.where}: {key} must be a number, got {shown(value)}")
        return float(value)

    def positive(self, key: str, default: float) -> float:
        """A finite number above 0; null means the default."""
        value = self.number(key, default)
        if value <= 0:
            raise ConfigError(f"{self.where}: {key} must be positive, got {value:g}")
        return value

    def optional_number(self, key: str, default: float | None = None) -> float | None:
        """A finite number, or None where the key is absent or null."""
        return None if self.take(key, default) is None else self.number(key, default or 0.0)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean; null means the default."""
        value = self.take(key, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key} must be true or false, got {shown(value)}")
        return value

    def activation(self, key: str, default: str) -> str:
        """The activation named under `key`, by edgeformer's name."""
        name = self.take(key, default)
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise ConfigError(f"{self.where}: {key} = {shown(name)} is not known; known are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def expect(self, **values: object) -> None:
        """Refuse a key whose value is not the supported one (it may be absent)."""
        for key, value in values.items():
            self.read.add(key)
            found = self.data.get(key, value)
            if found != value and not (found is None and not value):  # null may stand for nothing or off
                raise ConfigError(
                    f"{self.where}: {key} = {shown(self.data[key])} is not supported for {self.model_type};"
                    f" only {value!r} is"
                )

    def ignore(self, *keys: str) -> None:
        """Mark keys that don't change the network as read."""
        self.read.update(keys)
        self.ignored.update(keys)

    def done(self, allow_unread: bool = False) -> list[str]:
        """Check that every key was read; returns the unread ones if they are allowed.

        Raises:
            ConfigError: keys were not read; the message lists them.
        """
        if (scheme := self.take("quantization_config", None)) is not None:
            foreign.reader(scheme, self.where)  # refuses what isn't read
        self.expect(**{key: value for key, value in _MUST_BE.items() if key not in self.read})
        unread = sorted(self.data.keys() - self.read)
        if unread and not allow_unread:
            raise ConfigError(
                f"{self.where} has keys that models/{self.model_type}.py neither reads nor ignores:"
                f" {listed(unread)}. They may change the network. Extend the family file to read them, or pass"
                " --allow-unread-config to ignore them"
            )
        return unread


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ConfigError: it is missing, unreadable, too large, nested too deep, or not JSON.
    """
    return read_json_file(file, ConfigError)
