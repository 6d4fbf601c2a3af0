"""Run any spec as an mlx-lm model; the `model_file` of an exported folder imports this module.

mlx-lm's contract: `ModelArgs.from_dict(config)`, `Model(args)`, `model(inputs, cache) -> logits`, `layers`, `make_cache`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from edgeformer.backends.mlx.module import MlxModel
from edgeformer.backends.mlx.store import layout
from edgeformer.errors import InputError, SpecError
from edgeformer.spec import Model as Spec
from edgeformer.spec.serialization import from_json

if TYPE_CHECKING:
    from mlx_lm.models.cache import KVCache


@dataclass
class ModelArgs:
    """The relevant part of the config: the spec under `edgeformer_spec`."""

    spec: Spec
    model_type: str = "edgeformer"

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> ModelArgs:
        """Read the spec.

        Raises:
            SpecError: the spec is missing, or not a model.
        """
        spec = from_json(config.get("edgeformer_spec"))
        if not isinstance(spec, Spec):
            raise SpecError(f"config.json's edgeformer_spec holds a {spec.kind}, not a model")
        return cls(spec)


class CacheStore:
    """Adapts mlx-lm's KV caches, one per layer with a cache, to a store."""

    visible = None

    def __init__(self, paths: list[str], caches: list[Any]):
        from mlx_lm.models.cache import KVCache

        if not all(isinstance(c, KVCache) for c in caches):
            kinds = sorted({type(c).__name__ for c in caches})
            raise InputError(f"this model supports only mlx-lm's KVCache, not {', '.join(kinds)}")
        self.caches, self.start = dict(zip(paths, caches, strict=True)), caches[0].offset

    def length(self) -> int:
        """Tokens in the cache before this step."""
        return self.start

    def append(self, path: str, tensors: dict[str, mx.array]) -> tuple[mx.array, ...]:
        """Append the new tensors; returns the full ones."""
        first, second = tensors.values()
        return self.caches[path].update_and_fetch(first, second)

    def write(self, path: str, kv: mx.array) -> tuple[mx.array, mx.array]:
        """`append` for keys and values packed along the head axis."""
        half = kv.shape[1] // 2
        return self.caches[path].update_and_fetch(kv[:, :half], kv[:, half:])


class Model(MlxModel):
    """A spec's model with mlx-lm's interface."""

    args: ModelArgs
    model_type: str
    paths: list[str]

    def __init__(self, args: ModelArgs):
        super().__init__(args.spec)
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "model_type", args.model_type)
        object.__setattr__(self, "paths", list(layout(args.spec)))

    def __call__(
        self, inputs: mx.array, cache: list[KVCache] | None = None, input_embeddings: mx.array | None = None
    ) -> mx.array:
        """Logits [B, T, V] for token ids [B, T]."""
        if input_embeddings is not None:
            raise InputError("this model takes token ids, not embeddings")
        store = None if cache is None else CacheStore(self.paths, cache)
        return super().__call__(inputs, store=store)  # type: ignore[arg-type]

    def make_cache(self) -> list[Any]:
        """One KV cache per layer that has one."""
        return [_cache_class()() for _ in self.paths]


@cache
def _cache_class() -> Any:
    """mlx-lm's KVCache without `merge`, which keeps mlx-lm from batching; saved caches are looked up by this class name."""
    from mlx_lm.models import cache as caches

    class KVCache(caches.KVCache):
        @property
        def merge(self) -> Any:
            raise AttributeError("this model doesn't support batching")

    return KVCache
