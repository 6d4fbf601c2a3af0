"""Checkpoints that other tools quantized: one file per `quant_method` of config.json, looked up by its name.

Each has `join(stored, settings, where)`, which replaces the tensors that a tool stores for a weight by one that reads as float32,
exactly what the codes stand for, or keeps its codes where they are q4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgeformer import discover
from edgeformer.errors import ConfigError
from edgeformer.files.quoting import shown
from edgeformer.weights.foreign._groups import Joined
from edgeformer.weights.safetensors_file import StoredTensor

Join = Callable[[Mapping[str, StoredTensor], Mapping[str, Any], str], Joined]


def reader(settings: object, where: str) -> Join:
    """The `join` for a `quantization_config`.

    Raises:
        ConfigError: its `quant_method` isn't read; the message names it.
    """
    given = settings if isinstance(settings, Mapping) else {}
    method = given.get("quant_method")
    if method is None and isinstance(producer := given.get("producer"), Mapping):
        method = producer.get("name")
    name = str(method).replace("-", "_")
    if (
        not isinstance(method, str)
        or name not in discover.names(__name__)
        or (module := discover.find(__name__, name)) is None
    ):
        said = method or given.get("quantization_method") or given.get("quant_algo") or settings
        raise ConfigError(
            f"{where} describes a checkpoint quantized by {shown(said)} (quantization_config), which edgeformer doesn't read;"
            f" it reads {', '.join(discover.names(__name__))}. Give the original, and quantize it by `edgeformer quantize`"
        )
    return discover.function(module, "join")
