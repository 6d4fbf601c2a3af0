"""A recorded program with numbers given out: which matrices, vectors and buffers there are, and which ones instructions use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeformer.backends.native.program import (
    TILE,
    Buffer,
    CacheShape,
    Constant,
    Instruction,
    Kind,
    Op,
    Part,
    Program,
    Recorded,
    Rotation,
    expanded,
    places,
    rounded_buffers,
)
from edgeformer.backends.native.values import NotCovered


@dataclass(frozen=True)
class Fill:
    """A weight's rows in a matrix: tiles `tile`, `tile + step`, ...; `entry`: which one of a stack of weights."""

    part: Part
    tile: int
    step: int
    entry: int | None = None


@dataclass(frozen=True)
class MatrixLayout:
    """A matrix: its kind, sizes, and what fills it."""

    kind: Kind
    rows: int
    cols: int
    tiles: int
    fills: tuple[Fill, ...]


@dataclass
class Layout:
    """What the engine is given, and in which order: matrices and vectors by their numbers, then instructions.

    code: the instructions as recorded, one per instruction; rotations: the vectors that hold angles; outputs: see `Program`;
    scales: by cache, the vectors of its keys' and values' scales, if it holds codes.
    """

    vocab: int
    code: list[Recorded]
    widths: list[int]
    caches: list[CacheShape]
    matrices: list[MatrixLayout] = field(default_factory=list)
    vectors: list[Constant] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    rotations: list[tuple[Rotation, int]] = field(default_factory=list)
    outputs: dict[str, Buffer] = field(default_factory=dict)
    scales: list[tuple[int, int]] = field(default_factory=list)


class _Numbers:
    """Gives out numbers of matrices and vectors; equal ones share a number."""

    def __init__(self, layout: Layout, kinds: Mapping[str, Kind]):
        self.layout, self.kinds = layout, kinds
        self._matrices: dict[tuple[bool, tuple[Part, ...]], int] = {}
        self._vectors: dict[Constant, int] = {}

    def vector(self, constant: Constant) -> int:
        if constant not in self._vectors:
            self._vectors[constant] = len(self.layout.vectors)
            self.layout.vectors.append(constant)
        return self._vectors[constant]

    def _new(self, matrix: MatrixLayout) -> int:
        self.layout.matrices.append(matrix)
        return len(self.layout.matrices) - 1

    def matrix(self, i: Recorded) -> int:
        """The matrix of an instruction's parts; a table and the head tied to it share one."""
        parts = tuple(Part(p.weight, p.inputs, p.outputs) for p in i.parts)
        key = i.op is Op.GLU, parts
        if key not in self._matrices:
            kind, sizes = self.kinds[parts[0].weight], [_tiles(p) for p in parts]
            if i.op is Op.GLU:
                fills = tuple(Fill(p, n, 2) for n, p in enumerate(parts))
            else:
                fills = tuple(Fill(p, sum(sizes[:n]), 1) for n, p in enumerate(parts))
            rows = sum(p.outputs for p in parts)
            self._matrices[key] = self._new(MatrixLayout(kind, rows, parts[0].inputs, sum(sizes), fills))
        return self._matrices[key]

    def maps(self, i: Recorded) -> int:
        """The first of the maps of heads; the others follow."""
        (part,) = i.parts
        kind, tiles = self.kinds[part.weight], _tiles(part)
        made = [
            self._new(MatrixLayout(kind, part.outputs, part.inputs, tiles, (Fill(part, 0, 1, head),)))
            for head in range(int(i.numbers["heads"]))
        ]
        return made[0]

    def experts(self, i: Recorded) -> tuple[int, int]:
        """The first of the experts' gates and ups, and of their downs; the others follow."""
        (gate, up, down), count = i.parts, range(int(i.numbers["heads"]))
        if self.kinds[gate.weight] is not self.kinds[up.weight]:
            raise NotCovered(f"{gate.weight} and {up.weight} are stored differently, and the engine holds them as one")
        first = [
            self._new(
                MatrixLayout(
                    self.kinds[gate.weight], 2 * gate.outputs, gate.inputs, 2 * _tiles(gate),
                    (Fill(gate, 0, 2, e), Fill(up, 1, 2, e)),
                )
            )
            for e in count
        ]  # fmt: skip
        second = [
            self._new(
                MatrixLayout(self.kinds[down.weight], down.outputs, down.inputs, _tiles(down), (Fill(down, 0, 1, e),))
            )
            for e in count
        ]
        return first[0], second[0]


def lay_out(
    program: Program, kinds: Mapping[str, Kind], scales: Mapping[tuple[str, str], np.ndarray] | None = None
) -> Layout:
    """Give out numbers. kinds: weight's name -> how its matrix holds it; scales: of an int8 cache.

    Raises:
        NotCovered: experts' gates and ups are of different kinds.
    """
    # maps of heads are small, and their rows would have to be rounded head by head
    kinds = {**kinds, **{p.weight: kinds[p.weight].exact for i in program.code if i.op is Op.MAPS for p in i.parts}}
    code = expanded(program.code, kinds, program.buffer)
    placed, widths = places(code)
    layout = Layout(program.vocab, code, widths, list(program.caches), outputs=dict(program.outputs))
    numbers, rounded = _Numbers(layout, kinds), rounded_buffers(code, kinds)
    layout.instructions = [_instruction(i, numbers, placed, rounded) for i in code]
    if scales:
        layout.scales = [
            (numbers.vector(_fixed(scales[c.path, "k"])), numbers.vector(_fixed(scales[c.path, "v"])))
            for c in layout.caches
        ]
    layout.rotations = [(rotation, numbers.vector(rotation.constant)) for rotation in program.rotations]
    return layout


def _fixed(scale: np.ndarray) -> Constant:
    return Constant((), lambda: scale.reshape(-1))


def _instruction(i: Recorded, numbers: _Numbers, placed: dict[int, int], rounded: set[int]) -> Instruction:
    made = Instruction(
        op=i.op, dst=-1, src=-1, other=-1, total=-1, matrix=-1, weight=-1, bias=-1, table=-1, slopes=-1, sinks=-1, cache=-1,
        middle=-1, scale=1.0,
    )  # fmt: skip
    for name, value in i.numbers.items():
        setattr(made, name, value)
    for name in ("dst", "src", "other", "total", "middle"):
        if (buffer := getattr(i, name)) is not None:
            setattr(made, name, placed[buffer.number])
    for name in ("weight", "bias", "table", "slopes", "sinks"):
        if (constant := getattr(i, name)) is not None:
            setattr(made, name, numbers.vector(constant))
    if i.op is Op.MOE:
        made.matrix, made.bias = numbers.experts(i)
    elif i.op is Op.MAPS:
        made.matrix = numbers.maps(i)
    elif i.parts:
        made.matrix = numbers.matrix(i)
        gate, up = _biases(i)
        made.weight = made.weight if gate is None else numbers.vector(gate)
        made.bias = made.bias if up is None else numbers.vector(up)
    written = i.dst or i.src
    logits = i.dst is None and i.op not in (Op.APPEND, Op.OUT)
    made.kept = int(logits or (written is not None and written.kept))
    made.quantize = int(i.dst is not None and i.dst.number in rounded)
    return made


def _biases(i: Recorded) -> tuple[Constant | None, Constant | None]:
    """The vectors of an instruction's biases: of GLU's gate, and of everything else."""
    if i.op not in (Op.LINEAR, Op.GLU) or not any(p.bias for p in i.parts):
        return None, None
    if i.op is Op.GLU:
        return _joined(i.parts[:1]), _joined(i.parts[1:])
    return None, _joined(i.parts)


def _joined(parts: tuple[Part, ...]) -> Constant:
    """The biases of maps whose outputs lie side by side; one without a bias gets zeros."""
    names = tuple(p.bias for p in parts if p.bias is not None)
    if len(names) == len(parts):
        return Constant(names)

    def make(*found: np.ndarray) -> np.ndarray:
        given = iter(found)
        return np.concatenate([np.zeros(p.outputs, np.float32) if p.bias is None else next(given) for p in parts])

    return Constant(names, make)


def _tiles(part: Part) -> int:
    return -(-part.outputs // TILE)
