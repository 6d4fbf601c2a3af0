"""Base classes of block stacks: shared position schemes and masks, the residual pair, the final norm.

Not a kind of spec node: decoders and encoders hold their blocks directly, so that `model.layers[i]` is a block.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from edgeformer.layers.mask import Mask
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import T, Tensor
from edgeformer.spec import Declaration, Layer, Model, Node, Norm, Position, SharedKV, Sizes, Sub, layers


def add_norm(norm: LayerHandle, x: T, d: T | None) -> tuple[T, T]:
    """`(x + d, norm(x + d))` for a norm's handle; `d` is None before the first block."""
    return (x, norm(x)) if d is None else norm.add(x, d)


@dataclass(frozen=True, kw_only=True)
class Blocks(Layer):
    """Blocks and, unless None, a final norm. `order` lists block indices in execution order, if blocks are reused (ALBERT)."""

    blocks: tuple[Layer, ...]
    norm: Norm | None = None
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self.require(len(self.blocks) > 0, "needs at least one block")
        if self.order is not None:
            known = all(0 <= i < len(self.blocks) for i in self.order)
            self.require(
                bool(self.order) and known,
                f"order must list block indices from 0 to {len(self.blocks) - 1}, got {self.order}",
            )
            remembers = any(layer.cache() for block in self.blocks for _, layer, _ in layers(block, 1))
            self.require(
                not remembers,
                "order can't be combined with blocks that have a KV cache: such a block may run only once per step",
            )
        _check_sharing(self, self.blocks)
        # computed once, so that a forward pass doesn't walk the tree
        nodes = dict.fromkeys(n for b in dict.fromkeys(self.blocks) for _, x, _ in layers(b, 1) for n in x.per_step())
        for node in nodes:
            self.require(
                isinstance(node, (Layer, Mask)), f"per_step must return layers and masks; {node.kind} is neither"
            )
        _check_declared(self, self.blocks)
        object.__setattr__(self, "_positions", tuple(n for n in nodes if isinstance(n, Layer)))
        object.__setattr__(self, "_masks", tuple(n for n in nodes if isinstance(n, Mask)))

    @property
    def prefixed(self) -> bool:
        """Whether a prefix of the sequence is visible to all tokens (prefix LM), so that a step needs `Step.prefix`."""
        return any(mask.prefix for mask in self._masks)  # pyright: ignore[reportAttributeAccessIssue]

    def passes(self, child: str) -> int:
        if self.order is None or not child.startswith("layers."):  # the name that `stack_params` gives blocks
            return 1
        return self.order.count(int(child.removeprefix("layers.")))

    def depth(self) -> int:
        """Number of blocks run per forward pass."""
        return len(self.blocks if self.order is None else self.order)

    def stack_params(self, width: int) -> dict[str, Declaration]:
        """`positions` (each distinct scheme once), `layers`, and `norm` if there is a final one."""
        params: dict[str, Declaration] = {
            "positions": tuple(Sub(p, width) for p in self._positions),  # pyright: ignore[reportAttributeAccessIssue]
            "layers": tuple(Sub(b, width) for b in self.blocks),
        }
        return params if self.norm is None else params | {"norm": Sub(self.norm, width)}

    def run_stack(self, p: LayerHandle, x: Tensor, step: Step) -> Any:
        """Run all blocks and the final norm on x: [B, T, D]."""
        step, d = step.prepare(p, self._positions, self._masks), None  # pyright: ignore[reportAttributeAccessIssue]
        for layer in p.layers if self.order is None else [p.layers[i] for i in self.order]:
            x, d = layer(x, d, step)
        if self.norm is None:
            return x if d is None else x + d
        return add_norm(p.norm, x, d)[1]


@dataclass(frozen=True, kw_only=True)
class BlockStack(Blocks, Model):
    """A model made of one stack of blocks."""

    resizes: ClassVar[frozenset[str]] = frozenset(("layers", "width", "vocab", "context"))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive(vocab=self.vocab, width=self.width, context=self.context)

    def resized(self, sizes: Sizes, width: int) -> Self:
        """Resize; additional layers continue the existing pattern (windows, dense and sparse layers)."""
        given: dict[str, Any] = {"width": sizes.width, "vocab": sizes.vocab, "context": sizes.context}
        if sizes.layers is not None:
            self.require(self.order is None, "the number of layers can't change if `order` runs blocks more than once")
            given["blocks"] = _repeated(self.blocks, sizes.layers)
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def _repeated(blocks: tuple[Layer, ...], count: int) -> tuple[Layer, ...]:
    """The first `count` blocks; additional ones continue the blocks' shortest repeating pattern."""
    if count <= len(blocks):
        return blocks[:count]
    period = next(p for p in range(1, len(blocks) + 1) if all(a == b for a, b in zip(blocks, blocks[p:], strict=False)))
    out = list(blocks)
    while len(out) < count:
        out.append(out[-period])
    return tuple(out)


def _check_declared(stack: Node, blocks: tuple[Layer, ...]) -> None:
    """Raise `SpecError` if a layer holds a mask or position scheme that its `per_step` doesn't return: `apply` would not find it
    in `step.tables`."""
    for block in dict.fromkeys(blocks):
        for _, layer, _ in layers(block, 1):
            held = (getattr(layer, f.name) for f in fields(layer))
            for node in held:
                if isinstance(node, (Mask, Position)) and node not in layer.per_step():
                    stack.require(False, f"{layer.kind} has a {node.kind} that its per_step doesn't return")


def _check_sharing(stack: Node, blocks: tuple[Layer, ...]) -> None:
    """Raise `SpecError` unless borrowed K/V are published by exactly one earlier layer, in the same shape."""
    shared: dict[str, SharedKV] = {}
    for i, block in enumerate(blocks):
        for _, layer, _ in layers(block, 1):
            if (kv := layer.publishes()) is not None:
                stack.require(
                    kv.name not in shared,
                    f"block {i} shares its keys and values as {kv.name!r}, a name already taken by another layer",
                )
                shared[kv.name] = kv
            if (kv := layer.borrows()) is not None:
                stack.require(kv.name in shared, f"block {i} borrows {kv.name!r}, which no earlier block shares")
                made = shared[kv.name]
                stack.require(
                    made == kv,
                    f"block {i} borrows {kv.name!r}, which has {made.kv_heads} heads of {made.head_dim} channels; it needs"
                    f" {kv.kv_heads} of {kv.head_dim}",
                )
