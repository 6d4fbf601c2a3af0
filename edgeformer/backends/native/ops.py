"""Records a spec's instructions: the op vocabulary on values that only have a place and a width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from edgeformer.backends.native.program import ACTS, Buffer, CacheShape, Constant, Op, Part, Program, Recorded, Rotation
from edgeformer.backends.native.values import CachedValue, NotCovered, Positions, TokenIds, Value, Vector
from edgeformer.layers.alibi import Alibi
from edgeformer.layers.mask import Mask
from edgeformer.layers.rope import Rope
from edgeformer.ops.fused import Bias, Ops, Rotary
from edgeformer.ops.handle import LayerHandle
from edgeformer.spec import Model
from edgeformer.weights.formats import GROUP

if TYPE_CHECKING:
    from edgeformer.backends.native.record import LinearHandle, StackedHandle

RMS, LAYER = 0, 1


def _missing(name: str) -> Callable[..., NoReturn]:
    """A primitive that the engine has no instruction for."""

    def refuse(self: NativeOps, *inputs: object, **options: object) -> NoReturn:
        raise NotCovered(f"the native back end has no instruction for `{name}`, which {self.place} uses")

    return refuse


@dataclass(frozen=True)
class AlibiBias(Bias[Value]):
    """A bias that the attention kernel computes from its layer's slopes."""

    layer: Alibi


class NativeOps(Ops[Value]):
    """The vocabulary as instructions. A layer that needs another primitive isn't covered: `NotCovered` names both."""

    permute = _missing("permute")
    expand_dims = _missing("expand_dims")
    concat = _missing("concat")
    repeat_heads = _missing("repeat_heads")
    mean = _missing("mean")
    largest = _missing("largest")
    cumsum = _missing("cumsum")
    rsqrt = _missing("rsqrt")
    exp = _missing("exp")
    sin = _missing("sin")
    cos = _missing("cos")
    erf = _missing("erf")
    where = _missing("where")
    equal = _missing("equal")
    less = _missing("less")
    floor_divide = _missing("floor_divide")
    arange = _missing("arange")
    boolean = _missing("boolean")
    shape = _missing("shape")

    def __init__(self, spec: Model, capacity: int):
        self.program, self.capacity = Program(spec.vocab), capacity
        self.place, self.path = "the model", ""
        self.nothing = Value(self, Buffer(-1, 0), 0, 0)  # in place of values that kernels compute themselves
        self._changed: list[Value] = []
        self.angles: dict[Rope, Constant] = {}

    # ------------------------------------------------------------------------------------------------- recording

    def value(self, width: int, *, kept: bool = False) -> Value:
        """A value in a new buffer."""
        return Value(self, self.program.buffer(width, kept=kept), 0, width)

    def record(self, op: Op, dst: Value | None, src: Value | None = None, **rest: Any) -> None:
        """Append an instruction; numbers among `rest` become its numbers.

        Raises:
            NotCovered: an operand isn't what the instruction takes: it would compute something else.
        """
        whole_rows = (Op.LINEAR, Op.GLU, Op.MOE, Op.SOFTMAX, Op.TOPK, Op.SUM, Op.LAST)
        if src is not None and src.heads != 1 and op in whole_rows:
            raise NotCovered(f"the native back end has no `{op.name.lower()}` per head, which {self.place} uses")
        if src is not None and any(p.inputs != src.width for p in rest.get("parts", ()) if op in (Op.LINEAR, Op.GLU)):
            raise NotCovered(
                f"{self.place} applies a linear map to {src.width} channels, another number than its inputs"
            )
        fixed = {k: rest.pop(k) for k in ("parts", "weight", "bias", "table", "slopes", "sinks") if k in rest}
        numbers: dict[str, float] = {}
        values = {"dst": dst, "src": src} | {name: rest.pop(name, None) for name in ("other", "total", "middle")}
        for name, value in values.items():
            fixed[name] = None if value is None else value.buffer
            if value is not None and name != "middle":
                if value.buffer is self.nothing.buffer or any(map(value.overlaps, self._changed)):
                    raise NotCovered(
                        f"{self.place} reads queries or keys after attention, which the native back end rotates in place"
                    )
                if value.turned is not None and op not in (Op.APPEND, Op.ROTATE):
                    raise NotCovered(
                        f"{self.place} computes with rotated heads; the native back end only caches them or attends with them"
                    )
                numbers[f"{name}_at"] = value.at
        self.program.code.append(Recorded(op, numbers={**numbers, **rest}, path=self.path, **fixed))

    def like(self, x: Value, width: int | None = None) -> Value:
        """A new value with as many rows as `x`."""
        if not isinstance(x, Value):
            raise NotCovered(f"the native back end computes with rows of activations only, unlike {self.place}")
        return self.value(x.width if width is None else width, kept=x.buffer.kept)

    def combine(self, op: Op, x: Value, other: Value | Vector | float) -> Value:
        """x + other or x · other, elementwise."""
        y = self.like(x)
        if isinstance(other, Value):
            if other.width != x.width or other.buffer.kept != x.buffer.kept:
                raise NotCovered(
                    f"{self.place} combines {x.width} channels with {other.width}; the native back end doesn't broadcast"
                )
            self.record(op, y, x, other=other, width=x.width)
        elif isinstance(other, Vector):
            self.record(op, y, x, weight=other.repeated(x.width), width=x.width)
        else:
            self.record(op, y, x, scale=float(other), width=x.width)
        return y

    def enter(self, handle: LayerHandle, method: Callable[..., Any], *inputs: Any) -> Any:
        """Remember where we are, for messages; position schemes that kernels know are not traced."""
        before = self.place, self.path
        self.place, self.path = f"{handle.path or 'the model'} ({handle.layer.kind})", handle.path
        try:
            if isinstance(handle.layer, Alibi):
                return AlibiBias(self.nothing, handle.layer)
            if isinstance(handle.layer, Rope) and type(handle.layer).apply is Rope.apply:
                return Rotary(self.nothing, self.nothing, handle.layer)
            return method(self, handle, *inputs)
        finally:
            self.place, self.path = before

    def part(self, name: str, function: Callable[..., Any], *inputs: Any) -> Any:
        """The instructions of a part go under its name in profiles."""
        before, self.path = self.path, name
        try:
            return function(*inputs)
        finally:
            self.path = before

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
        if axis != -1 or x.heads != 1 or x.turned is not None:
            raise NotCovered(f"the native back end splits the last axis only, unlike {self.place}")
        starts = np.cumsum([0, *sizes])
        return [Value(self, x.buffer, x.at + int(at), size) for at, size in zip(starts, sizes, strict=False)]

    def take(self, table, ids):
        """Rows of a constant table by position."""
        if not isinstance(ids, Positions) or not isinstance(table, np.ndarray):
            raise NotCovered(f"the native back end takes rows by position only, unlike {self.place}")
        name = f"table {len(self.program.tables)}"
        self.program.tables[name] = table
        return self.lookup(Part(name, table.shape[1], table.shape[0]), ids)

    def lookup(self, part: Part, ids: Positions | TokenIds) -> Value:
        """Rows of a table."""
        y = self.value(part.inputs)
        op = Op.EMBED if isinstance(ids, TokenIds) else Op.LOOKUP
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

    def mask(self, spec, queries, keys, valid, prefix=None):
        return spec

    def attend(
        self, slot, qkv, shape, *, norms=None, position=None, mask=None, sinks: Vector | None = None, dropout=None
    ):
        q, k, v = qkv
        if slot is None or not isinstance(mask, Mask):
            raise NotCovered(f"the native back end attends to a cache only, unlike {self.place}")
        if norms is not None:
            q = self.norm_heads(norms[0], q, shape.heads, shape.head_dim)
            k = self.norm_heads(norms[1], k, shape.kv_heads, shape.head_dim)
        turn: dict[str, Any] = {}
        if isinstance(position, Rotary):
            layer = position.layer
            assert isinstance(layer, Rope)
            turn = {"table": self._angles(layer), "rotated": layer.dim, "interleaved": int(layer.interleaved)}
        cache = len(self.program.caches)
        self.program.caches.append(CacheShape(slot.path, shape.kv_heads, shape.head_dim, shape.value_dim))
        sizes = {"count": shape.heads, "heads": shape.kv_heads, "dim": shape.head_dim, "value_dim": shape.value_dim}
        self.record(Op.APPEND, None, q, other=k, total=v, cache=cache, **sizes, **turn)
        y = self.like(q, shape.heads * shape.value_dim)
        self.record(
            Op.ATTEND, y, q, cache=cache, **sizes, scale=shape.scale, softcap=shape.softcap or 0.0, causal=int(mask.causal),
            window=mask.window or 0, chunk=mask.chunk or 0, prefix=int(mask.prefix),
            slopes=_slopes(position), sinks=None if sinks is None else sinks.constant,
        )  # fmt: skip
        if turn:
            self._changed += [q, k]
        return y

    def split_heads(self, x, heads, dim):
        return self.reshape(x, (0, -1, heads, dim))

    def merge_heads(self, x, width):
        return self.reshape(x, (0, -1, width))

    def turn(self, x, position, head_dim):
        """Noted, and done where the heads are cached or used."""
        layer = position.layer
        assert isinstance(layer, Rope)
        return replace(x, turned=layer)

    def cached(self, path: str, k: Value, v: Value) -> tuple[CachedValue, CachedValue]:
        """Put a layer's keys, rotated if that is still to be done, and values into a cache of their own."""
        turn: dict[str, Any] = {}
        if k.turned is not None:
            turn = {"table": self._angles(k.turned), "rotated": k.turned.dim, "interleaved": int(k.turned.interleaved)}
        cache, shape = len(self.program.caches), CacheShape(path, k.heads, k.width // k.heads, v.width // v.heads)
        self.program.caches.append(shape)
        sizes = {"count": 0, "heads": shape.heads, "dim": shape.dim, "value_dim": shape.value_dim}
        self.record(Op.APPEND, None, None, other=k, total=v, cache=cache, **sizes, **turn)
        if turn:
            self._changed.append(k)
        return CachedValue(cache), CachedValue(cache)

    def attention(
        self, q, k: CachedValue, v: CachedValue, mask, bias, *, groups, scale, softcap=None, sinks: Vector | None = None,
        dropout=None,
    ):  # fmt: skip
        """Attention to what a layer has put into its cache, with queries that are rotated first."""
        if not isinstance(k, CachedValue) or not isinstance(v, CachedValue) or k != v or not isinstance(mask, Mask):
            raise NotCovered(f"the native back end attends to a cache only, unlike {self.place}")
        if q.turned is not None:
            y, layer = self.like(q), q.turned
            self.record(
                Op.ROTATE, y, q, table=self._angles(layer), rotated=layer.dim, interleaved=int(layer.interleaved), count=q.heads,
                dim=q.width // q.heads, width=q.width,
            )  # fmt: skip
            q = replace(y, heads=q.heads)
        if bias is not None:
            raise NotCovered(f"the native back end takes position biases in `attend` only, unlike {self.place}")
        shape = self.program.caches[k.cache]
        y = self.like(q, q.heads * shape.value_dim)
        self.record(
            Op.ATTEND, y, q, cache=k.cache, count=q.heads, heads=shape.heads, dim=shape.dim, value_dim=shape.value_dim,
            scale=scale, softcap=softcap or 0.0, causal=int(mask.causal), window=mask.window or 0, chunk=mask.chunk or 0,
            prefix=int(mask.prefix), sinks=None if sinks is None else sinks.constant,
        )  # fmt: skip
        return replace(y, heads=q.heads)

    # -------------------------------------------------------------------------------------------- mixtures of experts

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

    def _angles(self, layer: Rope) -> Constant:
        """cos and sin of each position, side by side: [capacity, rotated]. One constant per scheme: its layers share it."""
        if layer not in self.angles:
            capacity = self.capacity

            def make() -> np.ndarray:
                table = layer.table(capacity)
                return np.zeros((capacity, layer.dim), np.float32) if table is None else np.concatenate(table, 1)

            self.angles[layer] = Constant((), make)
            self.program.rotations.append(Rotation(layer, self.angles[layer]))
        return self.angles[layer]


def _slopes(position: Rotary | Bias | None) -> Constant | None:
    if not isinstance(position, Bias):
        return None
    if not isinstance(position, AlibiBias):
        raise NotCovered("the native back end knows ALiBi's biases only")
    return Constant((), position.layer.slopes)
