"""A spec with weights in the native engine: tiles filled straight from the files, and sessions that step."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import numpy as np

from edgeformer.backends.native.library import load_library, pointer
from edgeformer.backends.native.program import (
    TILE,
    Constant,
    Instruction,
    Kind,
    Op,
    Part,
    Program,
    Recorded,
    expanded,
    places,
    quantized_buffers,
)
from edgeformer.backends.numpy import NumpyOps
from edgeformer.weights.binding import Weights
from edgeformer.weights.formats import QuantizedTensor

MAX_NEW = 256
"""Tokens per sequence that one step computes; longer prompts are cut."""


class NativeModel:
    """A program whose weights lie in the engine's tiles.

    Args:
        program: the instructions; `record.record` makes a decoder's.
        weights: its weights; codes of q4 and q8 are taken as they are.
        capacity: the longest sequence of its sessions, as the program was recorded for.
        isa: an instruction set by name; None chooses the fastest.
        exact: multiply q4 and q8 weights by activations as they are; otherwise these are rounded to int8 first.

    Raises:
        RuntimeUnavailable: the library isn't built, and can't be built here.
        InputError: this processor doesn't have the instruction set.
    """

    def __init__(
        self, program: Program, weights: Weights, capacity: int, *, isa: str | None = None, exact: bool = False
    ):
        self.vocab, self.capacity, self.library = program.vocab, capacity, load_library()
        self.isa = self.library.isa(isa)
        self.handle = ctypes.c_void_p()
        self.library.call("ef_model_new", self.isa.encode(), program.vocab, ctypes.byref(self.handle))
        self._tables, self._weights, self._exact = program.tables, weights, exact
        self._matrices: dict[tuple[Op, tuple[Part, ...]], int] = {}
        self._vectors: dict[Constant, int] = {}
        kinds = {p.weight: self._kind(p) for i in program.code for p in i.parts}
        code = expanded(program.code, kinds, program.buffer)
        placed, widths = places(code)
        read_as_int8 = quantized_buffers(code, kinds)
        instructions = (Instruction * len(code))(*(self._laid_out(i, placed, kinds, read_as_int8) for i in code))
        caches, sizes = np.array(program.caches, np.int32).reshape(-1, 3), np.array(widths, np.int32)
        self.library.call(
            "ef_model_program", self.handle, pointer(sizes), len(sizes), ctypes.addressof(instructions), len(code),
            pointer(caches), len(caches),
        )  # fmt: skip
        self.code = code
        self.per_length = [(layer, self._vector(constant)) for layer, constant in program.per_length]
        self.matrix_kinds = kinds

    @property
    def kinds(self) -> set[Kind]:
        """The kinds of its products' weights."""
        return {self.matrix_kinds[p.weight] for i in self.code for p in i.parts if i.op is not Op.LOOKUP}

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.do("ef_model_delete", self.handle)

    def _laid_out(self, i: Recorded, placed: dict[int, int], kinds: dict[str, Kind], as_int8: set[int]) -> Instruction:
        """An instruction with the numbers of its buffers, matrices and vectors."""
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
                setattr(made, name, self._vector(constant))
        if i.op is Op.MOE:
            made.matrix, made.bias = self._experts(i, kinds)
        elif i.parts:
            made.matrix = self._matrix(i, kinds)
            gate, up = _biases(i)
            made.weight = made.weight if gate is None else self._vector(gate)
            made.bias = made.bias if up is None else self._vector(up)
        written = i.dst or i.src
        made.kept = int((i.dst is None and i.op is not Op.APPEND) or (written is not None and written.kept))
        made.quantize = int(i.dst is not None and i.dst.number in as_int8)
        return made

    # ------------------------------------------------------------------------------------------------------ weights

    def _kind(self, part: Part) -> Kind:
        if part.weight in self._tables:
            return Kind.FP32
        source = self._weights.sources[part.weight]
        if isinstance(source.stored, QuantizedTensor) and source.part is None:
            return Kind[source.stored.format.name.upper() + ("_EXACT" if self._exact else "")]
        return {"F16": Kind.FP16, "BF16": Kind.BF16}.get(source.stored.dtype, Kind.FP32)

    def _vector(self, constant: Constant) -> int:
        if constant not in self._vectors:
            arrays = [np.asarray(self._weights[name]).astype(np.float32) for name in constant.names]
            values = np.ascontiguousarray(constant.make(*arrays), np.float32)
            self._vectors[constant] = self.library.call("ef_vector_new", self.handle, pointer(values), values.size)
        return self._vectors[constant]

    def _matrix(self, i: Recorded, kinds: dict[str, Kind]) -> int:
        """The matrix of an instruction's parts; a table and the head tied to it share one."""
        key = (Op.GLU if i.op is Op.GLU else Op.LINEAR, tuple(Part(p.weight, p.inputs, p.outputs) for p in i.parts))
        if key in self._matrices:
            return self._matrices[key]
        kind, tiles = kinds[i.parts[0].weight], [-(-p.outputs // TILE) for p in i.parts]
        rows = sum(p.outputs for p in i.parts)
        number = self.library.call("ef_matrix_new", self.handle, kind, rows, i.parts[0].inputs, sum(tiles))
        first = 0
        for n, part in enumerate(i.parts):
            tile, step = (n, 2) if i.op is Op.GLU else (first, 1)
            self._fill(number, tile, step, *self._data(part, kind))
            first += tiles[n]
        self._matrices[key] = number
        return number

    def _fill(self, matrix: int, tile: int, step: int, data: np.ndarray, scales: np.ndarray | None) -> None:
        """Put all rows of a part into the matrix's tiles `tile`, `tile + step`, ..."""
        fill = (matrix, tile, step, 0, len(data), pointer(data), pointer(scales))
        self.library.call("ef_matrix_fill", self.handle, *fill)

    def _experts(self, i: Recorded, kinds: dict[str, Kind]) -> tuple[int, int]:
        """The first of the experts' gates and ups, and of their downs; the others follow. One tensor is in memory at a time."""
        gate, up, down = i.parts
        tiles = -(-gate.outputs // TILE)
        shapes = [(gate, 2 * gate.outputs, 2 * tiles), (down, down.outputs, -(-down.outputs // TILE))]
        numbers = [
            [
                self.library.call("ef_matrix_new", self.handle, kinds[part.weight], rows, part.inputs, tile_count)
                for _ in range(int(i.numbers["heads"]))
            ]
            for part, rows, tile_count in shapes
        ]
        for part, made, tile, step in ((gate, numbers[0], 0, 2), (up, numbers[0], 1, 2), (down, numbers[1], 0, 1)):
            for number, weight in zip(made, np.asarray(self._weights[part.weight]), strict=True):
                self._fill(number, tile, step, _plain(weight, kinds[part.weight]), None)
        return numbers[0][0], numbers[1][0]

    def _data(self, part: Part, kind: Kind) -> tuple[np.ndarray, np.ndarray | None]:
        """A weight's rows, and their scales or None, as files hold them."""
        if part.weight in self._tables:
            return np.ascontiguousarray(self._tables[part.weight], np.float32), None
        source = self._weights.sources[part.weight]
        if kind.grouped:
            assert isinstance(source.stored, QuantizedTensor)
            codes, scales = source.stored.quantized()
            shape = (part.outputs, -1)
            return np.ascontiguousarray(codes).reshape(shape), np.ascontiguousarray(scales).reshape(shape)
        return _plain(source.read().reshape(part.outputs, part.inputs), kind), None


def _plain(array: np.ndarray, kind: Kind) -> np.ndarray:
    return np.ascontiguousarray(array.astype(np.float32, copy=False) if kind is Kind.FP32 else array)


def _biases(i: Recorded) -> tuple[Constant | None, Constant | None]:
    """The vectors of an instruction's biases: of GLU's gate, and of everything else. Parts without one get zeros."""
    if i.op not in (Op.LINEAR, Op.GLU) or not any(p.bias for p in i.parts):
        return None, None

    def joined(parts: tuple[Part, ...]) -> Constant:
        named = [p.bias for p in parts]

        def make(*found: np.ndarray) -> np.ndarray:
            given = iter(found)
            pieces = [np.zeros(p.outputs, np.float32) if p.bias is None else next(given) for p in parts]
            return np.concatenate(pieces)

        return Constant(tuple(n for n in named if n is not None), make)

    if i.op is Op.GLU:
        return joined(i.parts[:1]), joined(i.parts[1:])
    return None, joined(i.parts)


class NativeDecoder:
    """A sequence (or `batch` of them) in the making.

    cache: "fp32" or "fp16", of keys and values.
    """

    def __init__(self, model: NativeModel, *, batch: int = 1, threads: int = 1, cache: str = "fp16"):
        self.model, self.batch, self.length = model, batch, 0
        self.handle = ctypes.c_void_p()
        kind = ("fp32", "fp16").index(cache)
        model.library.call(
            "ef_session_new", model.handle, batch, model.capacity, threads, kind, ctypes.byref(self.handle)
        )

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.model.library.do("ef_session_delete", self.handle)

    def reset(self) -> None:
        """Start a new sequence."""
        self.length = 0

    @contextlib.contextmanager
    def profiled(self) -> Iterator[np.ndarray]:
        """Yields int64 nanoseconds of each of `model.code`'s instructions, summed over the steps inside."""
        spent = np.zeros(len(self.model.code), np.int64)
        self.model.library.do("ef_session_profile", self.handle, pointer(spent))
        try:
            yield spent
        finally:
            self.model.library.do("ef_session_profile", self.handle, None)

    def step(
        self, ids: np.ndarray, mask: np.ndarray | None = None, *, keep: int = 1, prefix: np.ndarray | None = None
    ) -> np.ndarray:
        """Append tokens and compute the logits of the last `keep` positions (0: all): float32 [B, keep, V].

        ids: int64 [B, T]; mask: [B, past + T], 0 where padded, None when nothing is; prefix: [B], for prefix LMs, whose prefix
        must lie in the first step.
        """
        new, past = ids.shape[1], self.length
        keep = keep or new
        out = np.empty((self.batch, keep, self.model.vocab), np.float32)
        counted = None if mask is None or np.all(mask) else np.cumsum(mask, 1, dtype=np.int32) - 1
        if self.model.per_length:
            self._turn(np.arange(past, past + new)[None] if counted is None else np.maximum(counted[:, past:], 0))
        piece = new if prefix is not None else MAX_NEW
        for start in range(0, new, piece):
            end = min(start + piece, new)
            wanted = max(0, end - max(start, new - keep))  # of this piece's positions
            logits = out if wanted == keep else np.empty((self.batch, wanted, out.shape[2]), np.float32)
            self._step(ids[:, start:end], mask, counted, past + start, wanted, prefix, logits)
            if wanted and logits is not out:
                at = keep - (new - start) if start > new - keep else 0
                out[:, at : at + wanted] = logits
        self.length = past + new
        return out

    def _turn(self, positions: np.ndarray) -> None:
        """Compute the new tokens' angles where they depend on the length that the sequence has now; older keys keep theirs."""
        first, end = int(positions.min()), int(positions.max()) + 1
        for layer, vector in self.model.per_length:
            assert layer.scaling is not None
            row = int(np.asarray(layer.scaling.row(NumpyOps(), np.array([end])))[0])
            angles = (np.arange(first, end, dtype=np.float32)[:, None] * layer.frequencies()[row]).astype(np.float64)
            turned = np.concatenate([np.cos(angles), np.sin(angles)], 1) * layer.magnitude()
            data = np.ascontiguousarray(turned, np.float32)
            self.model.library.call(
                "ef_vector_set", self.model.handle, vector, first * layer.dim, pointer(data), data.size
            )

    def _step(self, ids, mask, counted, start, keep, prefix, out) -> None:
        new = ids.shape[1]
        ids = np.ascontiguousarray(ids, np.int64)
        valid = keys = None
        if counted is None:
            queries = np.broadcast_to(np.arange(start, start + new, dtype=np.int32), ids.shape)
        else:
            end = start + new
            queries, keys = counted[:, start:end], np.ascontiguousarray(counted[:, :end])
            valid = np.ascontiguousarray(mask[:, :end] != 0, np.uint8)
        queries = np.ascontiguousarray(queries)
        positions = np.maximum(queries, 0)
        lengths = None if prefix is None else np.ascontiguousarray(prefix, np.int32)
        self.model.library.call(
            "ef_session_step", self.handle, pointer(ids), pointer(positions), pointer(queries), pointer(keys), pointer(valid),
            pointer(lengths), start, new, keep, pointer(out),
        )  # fmt: skip
