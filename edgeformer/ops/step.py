"""The data of one forward pass: positions, key validity, and the KV cache. Nothing here mutates a step.

Masks and rotary tables are computed from *positions*, never from slot numbers, so one formula covers left padding, right
padding, gaps, growing and fixed-size caches, and chunked prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol

from edgeformer.errors import InputError
from edgeformer.ops.fused import Ops
from edgeformer.ops.tensor import MaskRule, Opaque, Size, T

if TYPE_CHECKING:
    from edgeformer.ops.handle import LayerHandle


class Store(Protocol):
    """Storage of keys and values between steps, in back-end tensors. Paths are layer paths such as `layers.0.attention`."""

    def append(self, path: str, tensors: dict[str, Any]) -> tuple[Any, ...]:
        """Append the new tokens' tensors `[B, heads, T, dim]`; return the full ones `[B, heads, S, dim]`."""
        ...

    def once(self, path: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Tensors computed once from the encoder's output: the stored ones, or those of `make()` on first use."""
        ...


@dataclass(frozen=True)
class Slot:
    """One layer's place in a store."""

    store: Store
    path: str

    def append(self, **tensors: T) -> tuple[T, ...]:
        """Append the new tokens' tensors; return the full ones, in the same order."""
        return self.store.append(self.path, tensors)

    def once(self, make: Callable[[], dict[str, T]]) -> dict[str, T]:
        """See `Store.once`."""
        return self.store.once(self.path, make)


class GrowingStore:
    """A store that concatenates `past`, the input cache, into `present`, the output cache; both keyed by (path, name)."""

    def __init__(self, ops: Ops, past: dict | None = None, memory: dict | None = None):
        self.ops, self.past, self.present = ops, past or {}, {}
        self.memory = {} if memory is None else memory

    def length(self) -> int:
        """Number of tokens cached before this step."""
        return next((x.shape[2] for x in self.past.values()), 0)

    def append(self, path: str, tensors: dict[str, T]) -> tuple[T, ...]:
        """Concatenate past and new tensors along the sequence axis."""
        for name, new in tensors.items():
            old = self.past.get((path, name))
            self.present[path, name] = new if old is None else self.ops.concat([old, new], 2)
        return tuple(self.present[path, name] for name in tensors)

    def once(self, path: str, make: Callable[[], dict[str, T]]) -> dict[str, T]:
        """Return the stored tensors, computed on first use."""
        if not any(p == path for p, _ in self.memory):
            self.memory.update({(path, name): x for name, x in make().items()})
        return {name: x for (p, name), x in self.memory.items() if p == path}


@dataclass(frozen=True)
class Step(Generic[T]):
    """The inputs of a forward pass besides the token ids.

    queries, keys: number of real tokens before each new token [B or 1, T] and before each token [B or 1, S], from which masks
    are computed. positions: input of position schemes [B or 1, T], usually equal to queries. valid: bool [B, S], False for
    padding, or None; keep: number of last positions that need logits (0: all). memory: the encoder's output [B, M, D] with
    `memory_valid` [B, M]. tables: the results of `prepare`, by spec node. shared: K/V published by a layer for later ones, by
    name; `prepare` resets it. prefix: int64 [B], the number of first tokens visible to all (`Mask.prefix`).
    """

    ops: Ops[T]
    queries: T
    keys: T
    positions: T
    valid: T | None = None
    store: Store | None = None
    keep: Size = 0
    memory: T | None = None
    memory_valid: T | None = None
    tables: dict[Hashable, Opaque] = field(default_factory=dict)
    shared: dict[str, tuple[T, T]] = field(default_factory=dict)
    prefix: T | None = None

    def slot(self, p: LayerHandle) -> Slot | None:
        """The layer's place in the KV cache, or None. Without a store `p.path` isn't read, as torch.compile specialises on it."""
        return None if self.store is None else Slot(self.store, p.path)

    def prepare(self, p: LayerHandle, positions: tuple[Hashable, ...], masks: tuple[MaskRule, ...]) -> Step[T]:
        """Compute each distinct position scheme and mask once, before the first block.

        `p.positions` holds the schemes' handles in the same order. Deliberately eager: tables made lazily inside a block break
        activation checkpointing if they depend on weights.
        """
        ops = self.ops
        if self.prefix is None and any(spec.prefix for spec in masks):
            raise InputError("this model is a prefix LM: pass prefix_length, the number of first tokens visible to all")
        tables: dict[Hashable, Opaque] = {spec: p.positions[i](self) for i, spec in enumerate(positions)}
        for spec in masks:
            tables[spec] = ops.mask(spec, self.queries, self.keys, self.valid, self.prefix)
        return replace(self, tables=tables, shared={})


def begin(
    ops: Ops[T],
    attention_mask: T,
    position_ids: T | None = None,
    *,
    new: Size = None,
    places: T | None = None,
    slots: bool = False,
    store: Store | None = None,
    keep: Size = 0,
    memory: T | None = None,
    memory_valid: T | None = None,
    prefix: T | None = None,
) -> Step[T]:
    """Make the step of a padded batch from Hugging Face inputs.

    attention_mask: int64 [B, S], 1 for real tokens, over past and new tokens; position_ids: int64 [B, T], or None to count
    the real tokens; new: T. places: int64 [T], the columns of the new tokens if they aren't the last ones (fixed-size store).
    `slots`: positions count padding too (as in BERT). The others are those of `Step`.
    """
    valid = ops.boolean(attention_mask)
    counted = ops.cumsum(attention_mask * 0 + 1 if slots else attention_mask) - 1
    if places is None:
        queries = ops.last(counted, new)
    else:
        queries = ops.permute(ops.take(ops.permute(counted, (1, 0)), places), (1, 0))
    if position_ids is None:
        position_ids = ops.clip(queries, 0, 1 << 30)
    return Step(
        ops,
        queries,
        counted,
        position_ids,
        valid,
        store,
        keep,
        memory=memory,
        memory_valid=memory_valid,
        prefix=prefix,
    )
