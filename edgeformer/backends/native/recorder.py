"""Instructions as they are recorded, and which operands they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from edgeformer.backends.native.program import Buffer, Op, Program, Recorded
from edgeformer.backends.native.values import NotCovered, Value, Vector
from edgeformer.ops.fused import Ops
from edgeformer.spec import Model
from edgeformer.spec.task import Task


def _missing(name: str) -> Callable[..., NoReturn]:
    """A primitive that the engine has no instruction for."""

    def refuse(self: Recorder, *inputs: object, **options: object) -> NoReturn:
        raise NotCovered(f"the native back end has no instruction for `{name}`, which {self.place} uses")

    return refuse


class Recorder(Ops[Value]):
    """The vocabulary's base: values in buffers, and a program that grows."""

    permute = _missing("permute")
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
    boolean = _missing("boolean")
    shape = _missing("shape")

    def __init__(self, spec: Model, capacity: int):
        self.program, self.capacity = Program(spec.vocab), capacity
        self.remembers = spec.task == Task.TEXT_GENERATION
        self.place, self.path = "the model", ""
        self.nothing = Value(self, Buffer(-1, 0), 0, 0)  # in place of values that kernels compute themselves
        self._changed: list[Value] = []

    def value(self, width: int, *, kept: bool = False) -> Value:
        """A value in a new buffer."""
        return Value(self, self.program.buffer(width, kept=kept), 0, width)

    def record(self, op: Op, dst: Value | None, src: Value | None = None, **rest: Any) -> None:
        """Append an instruction; numbers among `rest` become its numbers.

        Raises:
            NotCovered: an operand isn't what the instruction takes: it would compute something else.
        """
        whole_rows = (Op.LINEAR, Op.GLU, Op.MOE, Op.SOFTMAX, Op.TOPK, Op.SUM, Op.LAST, Op.GROUPS, Op.POOL, Op.OUT)
        for value in (src, rest.get("other"), rest.get("total")):
            if value is not None and value.step is not None and op not in (Op.HEADS, Op.MAPS):
                raise NotCovered(f"the native back end computes with heads that lie together only, unlike {self.place}")
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
                if value.turned is not None and op not in (Op.APPEND, Op.HEADS):
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

    def part(self, name: str, function: Callable[..., Any], *inputs: Any) -> Any:
        """The instructions of a part go under its name in profiles."""
        before, self.path = self.path, name
        try:
            return function(*inputs)
        finally:
            self.path = before
