"""The engine's instructions, as recorded and as laid out. `src/engine.h` says what each one does."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgeformer.layers.rope import Rope


class Op(IntEnum):
    """`Op` of `src/engine.h`, in its order."""

    EMBED = 0
    LOOKUP = 1
    ADD = 2
    MUL = 3
    CLAMP = 4
    ACT = 5
    NORM = 6
    LINEAR = 7
    GLU = 8
    APPEND = 9
    ATTEND = 10
    LAST = 11
    HEADS = 12
    SOFTMAX = 13
    TOPK = 14
    SUM = 15
    DIVIDE = 16
    MOE = 17
    MAPS = 18
    GROUPS = 19
    TYPES = 20
    POOL = 21
    OUT = 22


class Kind(IntEnum):
    """`Kind` of `src/kernels.h`: how a matrix holds its weights."""

    FP32 = 0
    FP16 = 1
    BF16 = 2
    Q8 = 3
    Q4 = 4
    Q8_EXACT = 5
    Q4_EXACT = 6

    @property
    def grouped(self) -> bool:
        """Whether weights are codes in groups of 32."""
        return self >= Kind.Q8

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded to int8 before the product."""
        return self in (Kind.Q8, Kind.Q4)

    @property
    def exact(self) -> Kind:
        """The same weights, with activations as they are."""
        return {Kind.Q8: Kind.Q8_EXACT, Kind.Q4: Kind.Q4_EXACT}.get(self, self)


FIRST, MEAN = 0, 1
"""How POOL makes one row of a sequence's rows: `count` of its instruction."""
TILE = 16
"""Rows of a tile: `kLanes` of `src/kernels.h`."""
ACTS = ("identity", "silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "sigmoid", "tanh")
"""Activations in the order of `Act` in `src/kernels.h`."""

_FIELDS = [
    "op",
    "dst",
    "src",
    "other",
    "total",
    "dst_at",
    "src_at",
    "other_at",
    "total_at",
    "width",
    "count",
    "heads",
    "dim",
    "value_dim",
    "matrix",
    "weight",
    "bias",
    "act",
    "norm",
    "cache",
    "table",
    "rotated",
    "interleaved",
    "causal",
    "window",
    "chunk",
    "prefix",
    "slopes",
    "sinks",
    "middle",
    "quantize",
    "kept",
    "src_step",
    "dst_step",
    "furthest",
]


class Instruction(ctypes.Structure):
    """`Instruction` of `src/engine.h`."""

    _fields_ = [(name, ctypes.c_int32) for name in _FIELDS] + [
        (name, ctypes.c_float) for name in ("eps", "scale", "softcap")
    ]


@dataclass(frozen=True)
class Buffer:
    """A value's rows of `width` floats. `kept`: one row per position that needs logits instead of one per new token."""

    number: int
    width: int
    kept: bool = False


@dataclass(frozen=True)
class Constant:
    """A vector made from weights when they are loaded; `names` are its tensors, `make` gets them as float32. Without `make`, it
    is the tensors one after the other."""

    names: tuple[str, ...]
    make: Callable[..., np.ndarray] | None = None

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The vector, float32, from its tensors' values."""
        given = [np.asarray(x).astype(np.float32) for x in arrays]
        return np.ascontiguousarray(np.concatenate(given) if self.make is None else self.make(*given), np.float32)


@dataclass(frozen=True)
class Rotation:
    """A position scheme that rotates heads, and the vector of its cosines and sines: [positions, cosines | sines]."""

    layer: Rope
    constant: Constant


@dataclass(frozen=True)
class Part:
    """A linear map: its weight's name, sizes, and its bias's name or None."""

    weight: str
    inputs: int
    outputs: int
    bias: str | None = None


@dataclass(frozen=True)
class Recorded:
    """An instruction before numbers are given out: buffers are objects (None: the logits), vectors are constants.

    parts: of LINEAR, maps of one input whose outputs lie side by side; of GLU, gate and up; of MOE, the stacks of gates,
    ups and downs; of MAPS, the stack of maps; of EMBED, LOOKUP and TYPES, the table.
    numbers: fields of `Instruction` by name; path: the layer's, or the part's, for profiles.
    """

    op: Op
    dst: Buffer | None
    src: Buffer | None = None
    other: Buffer | None = None
    total: Buffer | None = None
    middle: Buffer | None = None
    parts: tuple[Part, ...] = ()
    weight: Constant | None = None
    bias: Constant | None = None
    table: Constant | None = None
    slopes: Constant | None = None
    sinks: Constant | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    path: str = ""

    def reads(self) -> list[Buffer]:
        """The buffers whose contents it needs."""
        found = [self.src, self.other]
        if self.op in (Op.APPEND, Op.MOE):
            found.append(self.total)
        return [b for b in found if b is not None]

    def writes(self) -> list[Buffer]:
        """The buffers that it fills."""
        found = [self.dst, self.middle]
        if self.op in (Op.NORM, Op.TOPK):
            found.append(self.total)
        return [b for b in found if b is not None]


@dataclass(frozen=True)
class CacheShape:
    """The keys and values of a layer: its path, heads, and channels of each. `latent`: a key's first channels are its value, and
    only the others are kept as keys (MLA)."""

    path: str
    heads: int
    dim: int
    value_dim: int
    latent: bool = False

    @property
    def key_dim(self) -> int:
        """Channels that are kept as keys."""
        return self.dim - self.value_dim if self.latent else self.dim


@dataclass
class Program:
    """What `record.record` makes of a spec.

    tables: constant matrices by the name that parts refer to, float32 [rows, width]; outputs: what OUT instructions copy out, in
    their order, of models that return other things than logits.
    """

    vocab: int
    code: list[Recorded] = field(default_factory=list)
    caches: list[CacheShape] = field(default_factory=list)
    tables: dict[str, np.ndarray] = field(default_factory=dict)
    rotations: list[Rotation] = field(default_factory=list)
    outputs: dict[str, Buffer] = field(default_factory=dict)
    buffers: int = 0

    def buffer(self, width: int, *, kept: bool = False) -> Buffer:
        """A new buffer."""
        self.buffers += 1
        return Buffer(self.buffers - 1, width, kept)


def expanded(code: list[Recorded], kinds: Mapping[str, Kind], new: Callable[..., Buffer]) -> list[Recorded]:
    """The same code where each product is one that a single matrix can do: maps of one input share it only if they have the same
    kind and whole tiles, gates and ups only if they have the same kind. `new` makes a buffer.
    """
    out: list[Recorded] = []
    for i in code:
        found = {kinds[p.weight] for p in i.parts}
        if i.op is Op.LINEAR and len(i.parts) > 1 and (len(found) > 1 or any(p.outputs % TILE for p in i.parts)):
            at = 0
            for part in i.parts:
                out.append(replace(i, parts=(part,), numbers={**i.numbers, "dst_at": at}))
                at += part.outputs
        elif i.op is Op.GLU and len(found) > 1:
            assert i.dst is not None
            gate, up = list(i.parts)
            gated, upped = new(gate.outputs, kept=i.dst.kept), new(up.outputs, kept=i.dst.kept)
            out.append(replace(i, op=Op.LINEAR, dst=gated, parts=(gate,)))
            out.append(replace(i, op=Op.LINEAR, dst=upped, parts=(up,), numbers={**i.numbers, "act": 0}))
            out.append(Recorded(Op.MUL, i.dst, gated, upped, numbers={"width": gate.outputs}, path=i.path))
        else:
            out.append(i)
    return out


def places(code: list[Recorded]) -> tuple[dict[int, int], list[int]]:
    """Where buffers lie: buffer number -> place, and the places' widths. A place is used again once its value has been read for
    the last time."""
    last = {b.number: n for n, i in enumerate(code) for b in (*i.reads(), *i.writes())}
    free: dict[int, list[int]] = {}
    placed: dict[int, int] = {}
    widths: list[int] = []
    for n, i in enumerate(code):
        for b in i.writes():
            if b.number not in placed:
                if free.get(b.width):
                    placed[b.number] = free[b.width].pop()
                else:
                    placed[b.number] = len(widths)
                    widths.append(b.width)
        for b in {b.number: b for b in (*i.reads(), *i.writes())}.values():
            if last[b.number] == n:
                free.setdefault(b.width, []).append(placed[b.number])
    return placed, widths


def rounded_buffers(code: list[Recorded], kinds: Mapping[str, Kind]) -> set[int]:
    """Numbers of the buffers whose rows are also needed as int8: those that a matrix of a rounding kind reads."""
    products = (Op.LINEAR, Op.GLU, Op.MOE)
    return {i.src.number for i in code if i.op in products and i.src is not None and kinds[i.parts[0].weight].rounds}
