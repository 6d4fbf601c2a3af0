"""Any spec as a model of mlx-lm: what the `model_file` of an exported folder imports.

mlx-lm's contract: `ModelArgs.from_dict(config)`, `Model(args)`, `model(inputs, cache) -> logits`, `layers`, `make_cache`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx

from edgeformer.backends.mlx.module import MlxModel
from edgeformer.backends.mlx.store import layout
from edgeformer.errors import InputError, SpecError
from edgeformer.spec import Model as Spec
from edgeformer.spec.serialization import from_json


@dataclass
class ModelArgs:
    """The config's part that matters: the spec under `edgeformer_spec`."""

    spec: Spec
    model_type: str = "edgeformer"

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> ModelArgs:
        """Read the spec.

        Raises:
            SpecError: there is none, or it is no model.
        """
        spec = from_json(config.get("edgeformer_spec"))
        if not isinstance(spec, Spec):
            raise SpecError(f"config.json's edgeformer_spec holds a {spec.kind}, not a model")
        return cls(spec)


class CacheStore:
    """mlx-lm's caches, one per layer that remembers, as a store."""

    visible = None

    def __init__(self, paths: list[str], caches: list[Any]):
        from mlx_lm.models.cache import KVCache

        if not all(isinstance(c, KVCache) for c in caches):
            kinds = sorted({type(c).__name__ for c in caches})
            raise InputError(f"this model runs with mlx-lm's KVCache, not with {', '.join(kinds)}")
        self.caches, self.start = dict(zip(paths, caches, strict=True)), caches[0].offset

    def length(self) -> int:
        """Tokens remembered before this step."""
        return self.start

    def append(self, path: str, tensors: dict[str, mx.array]) -> tuple[mx.array, ...]:
        """The full tensors after remembering the new ones."""
        first, second = tensors.values()
        return self.caches[path].update_and_fetch(first, second)

    def write(self, path: str, kv: mx.array) -> tuple[mx.array, mx.array]:
        """The same for keys and values side by side."""
        half = kv.shape[1] // 2
        return self.caches[path].update_and_fetch(kv[:, :half], kv[:, half:])


class Model(MlxModel):
    """A spec's model as mlx-lm calls it."""

    args: ModelArgs
    model_type: str
    paths: list[str]

    def __init__(self, args: ModelArgs):
        super().__init__(args.spec)
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "model_type", args.model_type)
        object.__setattr__(self, "paths", list(layout(args.spec)))

    def __call__(self, inputs: mx.array, cache: Any = None, input_embeddings: Any = None) -> mx.array:  # type: ignore[override]
        """Logits [B, T, V] of ids [B, T]."""
        if input_embeddings is not None:
            raise InputError("this model takes token ids, not embeddings")
        store = None if cache is None else CacheStore(self.paths, cache)
        return super().__call__(inputs, store=store)  # type: ignore[arg-type]

    def make_cache(self) -> list[Any]:
        """One cache per layer that remembers."""
        return [_cache_class()() for _ in self.paths]


@cache
def _cache_class() -> Any:
    """mlx-lm's KVCache, by that name (saved caches are found by it), which can't be merged: mlx-lm doesn't batch then."""
    from mlx_lm.models import cache as caches

    class KVCache(caches.KVCache):
        @property
        def merge(self) -> Any:
            raise AttributeError("this model takes one sequence at a time")

    return KVCache
