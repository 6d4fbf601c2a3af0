"""Records a spec's instructions: the op vocabulary on values that only have a place and a width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeformer.backends.native.attention import AlibiBias, AttentionOps
from edgeformer.backends.native.program import ACTS, FIRST, MEAN, Constant, Op, Part
from edgeformer.backends.native.values import (
    FirstRow,
    NotCovered,
    Positions,
    RealTokens,
    TokenIds,
    TokenTypes,
    Value,
    Vector,
)
from edgeformer.layers.alibi import Alibi
from edgeformer.layers.relative_bias import RelativeBias
from edgeformer.layers.rope import Rope
from edgeformer.ops.fused import Rotary
from edgeformer.ops.handle import LayerHandle
from edgeformer.weights.formats import GROUP

if TYPE_CHECKING:
    from edgeformer.backends.native.record import LinearHandle, StackedHandle

RMS, LAYER = 0, 1


class NativeOps(AttentionOps):
    """The vocabulary as instructions. A layer that needs another primitive isn't covered: `NotCovered` names both."""

    # ------------------------------------------------------------------------------------------------- recording

    def enter(self, handle: LayerHandle, method: Callable[..., Any], *inputs: Any) -> Any:
        """Remember where we are, for messages; position schemes that kernels know are not traced."""
        before = self.place, self.path
        self.place, self.path = f"{handle.path or 'the model'} ({handle.layer.kind})", handle.path
        try:
            if isinstance(handle.layer, Alibi):
                return AlibiBias(self.nothing, handle.layer)
            if isinstance(handle.layer, RelativeBias):
                return self._distance_bias(handle.layer, handle.path)
            if isinstance(handle.layer, Rope) and type(handle.layer).apply is Rope.apply:
                return Rotary(self.nothing, self.nothing, handle.layer)
            return method(self, handle, *inputs)
        finally:
            self.place, self.path = before

    # ------------------------------------------------------------------------------------------------- primitives

    def cast(self, x, like):
        return x

    def f32(self, x):
        return x

    def last(self, x, count):
        y = self.value(x.width, kept=True)
        self.record(Op.LAST, y, x, width=x.width)
        return y

    def reshape(self, x, sizes):
        """Only between [B, T, width] and [B, T, heads, dim]."""
        match tuple(sizes):
            case (0, -1, int(heads), int(dim)) if heads * dim == x.width:
                return replace(x, heads=heads)
            case (0, -1, int(width)) if width == x.width:
                return replace(x, heads=1)
        raise NotCovered(f"the native back end reshapes only to heads and back, unlike {self.place}")

    def split(self, x, sizes, axis):
        if axis != -1 or x.turned is not None:
            raise NotCovered(f"the native back end splits the last axis only, unlike {self.place}")
        starts, step = np.cumsum([0, *sizes]), None if x.heads == 1 else x.head_step
        return [
            Value(self, x.buffer, x.at + int(at), x.heads * size, x.heads, step=step)
            for at, size in zip(starts, sizes, strict=False)
        ]

    def arange(self, count, like):
        """Ids of a table's first row only."""
        if count != 1:
            raise NotCovered(f"the native back end has no instruction for `arange`, which {self.place} uses")
        return FirstRow()

    def take(self, table, ids):
        """Rows of a constant table by position."""
        if not isinstance(ids, Positions) or not isinstance(table, np.ndarray):
            raise NotCovered(f"the native back end takes rows by position only, unlike {self.place}")
        name = f"table {len(self.program.tables)}"
        self.program.tables[name] = table
        return self.lookup(Part(name, table.shape[1], table.shape[0]), ids)

    def lookup(self, part: Part, ids: Positions | TokenIds | TokenTypes | FirstRow) -> Value | Vector:
        """Rows of a table."""
        if isinstance(ids, FirstRow):
            shape = (part.outputs, part.inputs)
            return Vector(Constant((part.weight,), lambda table: table.reshape(shape)[0]), part.inputs)
        y = self.value(part.inputs)
        op = {TokenIds: Op.EMBED, TokenTypes: Op.TYPES, Positions: Op.LOOKUP}[type(ids)]
        offset = ids.offset if isinstance(ids, Positions) else 0
        self.record(op, y, parts=(part,), width=part.inputs, count=offset, scale=1.0)
        return y

    def clip(self, x, low, high):
        if not isinstance(x, Value) or low != -high:
            raise NotCovered(f"the native back end clamps symmetrically only, unlike {self.place}")
        y = self.like(x)
        self.record(Op.CLAMP, y, x, scale=high, width=x.width)
        return y

    def _act(self, name: str, x: Value) -> Value:
        y = self.like(x)
        self.record(Op.ACT, y, x, act=ACTS.index(name), width=x.width)
        return y

    def tanh(self, x):
        return self._act("tanh", x)

    def sigmoid(self, x):
        return self._act("sigmoid", x)

    def relu(self, x):
        return self._act("relu", x)

    # ---------------------------------------------------------------------------------------------------- fused ops

    def activate(self, name, x):
        """In the product that made `x`, if it has just been recorded."""
        if name not in ACTS:
            raise NotCovered(f"the native back end has no activation {name!r}")
        made = self.program.code[-1]
        if made.op is not Op.LINEAR or made.dst != x.buffer or len(made.parts) > 1 or "act" in made.numbers:
            return self._act(name, x)
        self.program.code[-1] = replace(made, numbers={**made.numbers, "act": ACTS.index(name)})
        return x

    def _norm(
        self, kind: int, x: Value, d: Value | None, weight: Vector | None, bias: Vector | None, eps: float
    ) -> Any:
        y, total = self.like(x), None if d is None else self.like(x)
        size = x.width // x.heads
        vectors = {"weight": weight, "bias": bias}
        constants = {k: None if v is None else v.repeated(size) for k, v in vectors.items()}
        self.record(Op.NORM, y, x, other=d, total=total, norm=kind, width=size, count=x.heads, eps=eps, **constants)
        return replace(y, heads=x.heads) if total is None else (total, y)

    def rms_norm(self, x, weight: Vector, *, eps):
        return self._norm(RMS, x, None, weight, None, eps)

    def add_rms_norm(self, x, d, weight: Vector, *, eps):
        return self._norm(RMS, x, d, weight, None, eps)

    def layer_norm(self, x, weight: Vector | None, bias: Vector | None, *, eps):
        return self._norm(LAYER, x, None, weight, bias, eps)

    def add_layer_norm(self, x, d, weight: Vector | None, bias: Vector | None, *, eps):
        return self._norm(LAYER, x, d, weight, bias, eps)

    def linears(self, x, *handles: LinearHandle):
        parts = tuple(h.part for h in handles)
        y = self.like(x, sum(p.outputs for p in parts))
        self.record(Op.LINEAR, y, x, parts=parts)
        return tuple(self.split(y, [p.outputs for p in parts], -1))

    def glu_ffn(self, x, gate: LinearHandle, up: LinearHandle, down: LinearHandle, *, act):
        if act not in ACTS:
            raise NotCovered(f"the native back end has no activation {act!r}")
        y = self.like(x, gate.part.outputs)
        self.record(Op.GLU, y, x, parts=(gate.part, up.part), act=ACTS.index(act))
        return down(y)

    # ---------------------------------------------------------------------------------------------- whole sequences

    def first_token(self, x):
        return self._pooled(x, FIRST)

    def token_mean(self, x, mask):
        if not isinstance(mask, RealTokens):
            raise NotCovered(f"the native back end takes means over real tokens only, unlike {self.place}")
        return self._pooled(x, MEAN)

    def _pooled(self, x: Value, how: int) -> Value:
        y = self.value(x.width, kept=True)
        self.record(Op.POOL, y, x, count=how, width=x.width)
        return y

    def unit(self, x):
        """As a norm: x / √(Σ x² + ε) = x / √(mean x² + ε/n) / √n."""
        width = x.width
        return self._norm(RMS, x, None, None, None, 1e-24 / width) * width**-0.5

    def out(self, name: str, x: Value) -> None:
        """Copy a value into one of the caller's arrays."""
        self.record(Op.OUT, None, x, count=len(self.program.outputs), width=x.width)
        self.program.outputs[name] = x.buffer

    # -------------------------------------------------------------------------------------------- mixtures of experts

    def within_groups(self, scores, groups, size, count):
        y = self.like(scores)
        self.record(Op.GROUPS, y, scores, heads=groups, count=count, width=groups * size)
        return y

    def softmax(self, x):
        y = self.like(x)
        self.record(Op.SOFTMAX, y, x, width=x.width)
        return y

    def sum(self, x, axis, *, keep=False):
        """Over the last axis, kept with size 1."""
        if axis != -1 or not keep:
            raise NotCovered(f"the native back end sums over the last axis only, unlike {self.place}")
        y = self.like(x, 1)
        self.record(Op.SUM, y, x, width=x.width)
        return y

    def topk(self, x, count):
        y, indices = self.like(x, count), self.like(x, count)
        self.record(Op.TOPK, y, x, total=indices, count=count, width=x.width)
        return y, indices

    def moe(self, x, weights, chosen, gate: StackedHandle, up: StackedHandle, down: StackedHandle, *, act, count):
        if act not in ACTS:
            raise NotCovered(f"the native back end has no activation {act!r}")
        padded = -(-gate.part.outputs // GROUP) * GROUP
        y, middle = self.like(x, down.part.outputs), self.like(x, chosen.width * padded)
        parts = (gate.part, up.part, down.part)
        self.record(
            Op.MOE, y, x, other=weights, total=chosen, middle=middle, parts=parts, act=ACTS.index(act), count=chosen.width,
            heads=count, value_dim=gate.part.outputs, width=down.part.outputs,
        )  # fmt: skip
        return y
