"""What every stack of blocks does: shared position schemes and masks, the residual pair, the final norm.

Not a kind of its own: decoders and encoders hold their blocks directly, so that `model.layers[i]` is a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgeformer.layers.mask import Mask
from edgeformer.spec import Declaration, Layer, Model, Node, Norm, Sub, layers


def add_norm(norm: Any, x: Any, d: Any) -> tuple[Any, Any]:
    """`(x + d, norm(x + d))` for a norm's handle; `d` is None before the first block."""
    return (x, norm(x)) if d is None else norm.add(x, d)


@dataclass(frozen=True, kw_only=True)
class Blocks(Layer):
    """Blocks and, unless None, a final norm. `order` says which block runs when, if one runs more than once (ALBERT)."""

    blocks: tuple[Layer, ...]
    norm: Norm | None = None
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self.require(len(self.blocks) > 0, "at least one block is needed")
        if self.order is not None:
            known = all(0 <= i < len(self.blocks) for i in self.order)
            self.require(bool(self.order) and known, f"order names blocks 0..{len(self.blocks) - 1}, got {self.order}")
            remembers = any(layer.cache() for block in self.blocks for _, layer, _ in layers(block, 1))
            self.require(not remembers, "a block that remembers tokens can run only once per step")
        _check_sharing(self, self.blocks)
        # found once: a forward pass must not walk the tree
        object.__setattr__(self, "_positions", _distinct(self.blocks, "position", Layer))
        object.__setattr__(self, "_masks", _distinct(self.blocks, "mask", Mask))

    @property
    def prefixed(self) -> bool:
        """Whether the first tokens of a sequence are seen by all, so that a step has to be told how many (`Step.prefix`)."""
        return any(mask.prefix for mask in self._masks)  # pyright: ignore[reportAttributeAccessIssue]

    def depth(self) -> int:
        """How many blocks a token passes."""
        return len(self.blocks if self.order is None else self.order)

    def stack_params(self, width: int) -> dict[str, Declaration]:
        """`positions` (each distinct scheme once), `layers`, and `norm` if there is a final one."""
        params: dict[str, Declaration] = {
            "positions": tuple(Sub(p, width) for p in self._positions),  # pyright: ignore[reportAttributeAccessIssue]
            "layers": tuple(Sub(b, width) for b in self.blocks),
        }
        return params if self.norm is None else params | {"norm": Sub(self.norm, width)}

    def run_stack(self, p: Any, x: Any, step: Any) -> Any:
        """All blocks and the final norm on x: [B, T, D]."""
        step, d = step.prepare(p, self._positions, self._masks), None  # pyright: ignore[reportAttributeAccessIssue]
        for layer in p.layers if self.order is None else [p.layers[i] for i in self.order]:
            x, d = layer(x, d, step)
        if self.norm is None:
            return x if d is None else x + d
        return add_norm(p.norm, x, d)[1]


@dataclass(frozen=True, kw_only=True)
class BlockStack(Blocks, Model):
    """A model made of one stack of blocks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("vocab", "width", "context")


def _distinct(blocks: tuple[Layer, ...], field: str, kind: type) -> tuple[Any, ...]:
    def values() -> Iterator[Any]:
        for block in dict.fromkeys(blocks):
            yield from (getattr(layer, field, None) for _, layer, _ in layers(block, 1))

    return tuple(dict.fromkeys(value for value in values() if isinstance(value, kind)))


def _check_sharing(stack: Node, blocks: tuple[Layer, ...]) -> None:
    """Raise `SpecError` unless keys and values that a layer borrows were shared before, by one layer, in the same shape."""
    shared: dict[str, tuple[int, int]] = {}
    for i, block in enumerate(blocks):
        for _, layer, _ in layers(block, 1):
            shape = (getattr(layer, "kv_heads", 0), getattr(layer, "head_dim", 0))
            if (name := getattr(layer, "shares", None)) is not None:
                stack.require(
                    name not in shared, f"block {i} shares keys and values as {name!r}, which another does already"
                )
                shared[name] = shape
            if (name := getattr(layer, "source", None)) is not None:
                stack.require(name in shared, f"block {i} borrows {name!r}, which no block before it shares")
                stack.require(
                    shared[name] == shape,
                    f"block {i} borrows {name!r} of {' heads of '.join(map(str, shared[name]))} channels, and has"
                    f" {' of '.join(map(str, shape))}",
                )
