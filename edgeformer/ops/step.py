"""One forward pass as data: positions, which keys are real, and where the cache lives. Nothing here mutates a step.

Masks and rotary tables come from *positions*, never from slot numbers, so left padding, right padding, gaps, growing and
fixed caches and chunked prefill are all one formula.
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
    """Where keys and values live between steps, in its back end's tensors. Paths are layer paths such as `layers.0.attention`."""

    def append(self, path: str, tensors: dict[str, Any]) -> tuple[Any, ...]:
        """Remember new tokens' tensors `[B, heads, T, dim]`; return the full ones `[B, heads, S, dim]`."""
        ...

    def once(self, path: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The tensors made once from the encoder's output, by `make()` where they aren't stored yet."""
        ...


@dataclass(frozen=True)
class Slot:
    """One layer's place in a store."""

    store: Store
    path: str

    def append(self, **tensors: T) -> tuple[T, ...]:
        """Remember the new tokens' tensors; the full tensors, in the same order."""
        return self.store.append(self.path, tensors)

    def once(self, make: Callable[[], dict[str, T]]) -> dict[str, T]:
        """See `Store.once`."""
        return self.store.once(self.path, make)


class GrowingStore:
    """A store that concatenates: `past` is what came in, `present` what goes out, both keyed by (path, name)."""

    def __init__(self, ops: Ops, past: dict | None = None, memory: dict | None = None):
        self.ops, self.past, self.present = ops, past or {}, {}
        self.memory = {} if memory is None else memory

    def length(self) -> int:
        """Tokens remembered before this step."""
        return next((x.shape[2] for x in self.past.values()), 0)

    def append(self, path: str, tensors: dict[str, T]) -> tuple[T, ...]:
        """Past and new tensors joined along the sequence axis."""
        for name, new in tensors.items():
            old = self.past.get((path, name))
            self.present[path, name] = new if old is None else self.ops.concat([old, new], 2)
        return tuple(self.present[path, name] for name in tensors)

    def once(self, path: str, make: Callable[[], dict[str, T]]) -> dict[str, T]:
        """The stored tensors, made on first use."""
        if not any(p == path for p, _ in self.memory):
            self.memory.update({(path, name): x for name, x in make().items()})
        return {name: x for (p, name), x in self.memory.items() if p == path}


@dataclass(frozen=True)
class Step(Generic[T]):
    """What a forward pass knows besides its input ids.

    queries, keys: how many real tokens come before each new token [B or 1, T] and each token [B or 1, S]: what masks are made
    of. positions: what position schemes are given [B or 1, T], usually the queries. valid: bool [B, S], False where padded,
    or None; keep: how many last positions need logits (0 all). memory: the encoder's output [B, M, D] with
    `memory_valid` [B, M]. tables: what `prepare` computed, by spec node. shared: keys and values that a layer leaves to later
    ones, by name; `prepare` begins a new one. prefix: int64 [B], how many tokens every token may see (`Mask.prefix`).
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
    tables: dict[Any, Opaque] = field(default_factory=dict)
    shared: dict[str, tuple[T, T]] = field(default_factory=dict)
    prefix: T | None = None

    def slot(self, p: LayerHandle) -> Slot | None:
        """The layer's place in the cache. `p.path` is left unread without one: torch.compile specialises on it."""
        return None if self.store is None else Slot(self.store, p.path)

    def prepare(self, p: LayerHandle, positions: tuple[Hashable, ...], masks: tuple[MaskRule, ...]) -> Step[T]:
        """Compute each distinct position scheme and mask once, before the first block.

        `p.positions` holds the schemes' parameters in the same order. Eager on purpose: tables made lazily inside a
        block break activation checkpointing when the table has weights.
        """
        ops = self.ops
        if self.prefix is None and any(spec.prefix for spec in masks):
            raise InputError("this model's first tokens are seen by all: say how many they are, by prefix_length")
        tables: dict[Any, Opaque] = {spec: p.positions[i](self) for i, spec in enumerate(positions)}
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
    **rest: Any,
) -> Step[T]:
    """The step of a padded batch, from the Hugging Face inputs.

    attention_mask: int64 [B, S], 1 for real tokens, over past and new tokens; position_ids: int64 [B, T], or None to count
    the real tokens; new: T. places: int64 [T], the columns of the new tokens where they aren't the last ones (a store of fixed
    size). `slots` counts padding too (BERT numbers its slots).
    """
    valid = ops.boolean(attention_mask)
    counted = ops.cumsum(attention_mask * 0 + 1 if slots else attention_mask) - 1
    if places is None:
        queries = ops.last(counted, new)
    else:
        queries = ops.permute(ops.take(ops.permute(counted, (1, 0)), places), (1, 0))
    if position_ids is None:
        position_ids = ops.clip(queries, 0, 1 << 30)
    return Step(ops, queries, counted, position_ids, valid, **rest)
