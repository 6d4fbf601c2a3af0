"""A spec with weights in the native engine: tiles filled straight from the files, and sessions that step."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edgeformer.backends.native.layout import Fill, lay_out
from edgeformer.backends.native.library import load_library, pointer
from edgeformer.backends.native.program import Buffer, Instruction, Kind, Part, Program, Recorded
from edgeformer.backends.numpy import NumpyOps
from edgeformer.errors import InputError
from edgeformer.weights.binding import Weights
from edgeformer.weights.formats import QuantizedTensor

LOADERS = 2
"""Threads that read weights and fill tiles."""
MAX_NEW = 256
"""Tokens per sequence that one step computes; longer prompts are cut."""


class NativeModel:
    """A program whose weights lie in the engine's tiles.

    Args:
        program: the instructions; `record.record` makes them.
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
        self.layout = lay_out(program, {p.weight: self._kind(p) for i in program.code for p in i.parts})
        self._load_matrices()
        for constant in self.layout.vectors:
            values = constant.values([self._weights[name] for name in constant.names])
            self.library.call("ef_vector_new", self.handle, pointer(values), values.size)
        widths, code = np.array(self.layout.widths, np.int32), self.layout.instructions
        caches = np.array([(c.heads, c.dim, c.value_dim, c.latent) for c in self.layout.caches], np.int32).reshape(
            -1, 4
        )
        instructions = (Instruction * len(code))(*code)
        self.library.call(
            "ef_model_program", self.handle, pointer(widths), len(widths), ctypes.addressof(instructions), len(code),
            pointer(caches), len(caches),
        )  # fmt: skip

    @property
    def code(self) -> list[Recorded]:
        """Its instructions, as recorded."""
        return self.layout.code

    @property
    def outputs(self) -> dict[str, Buffer]:
        """What it returns in place of logits, in order."""
        return self.layout.outputs

    @property
    def kinds(self) -> set[Kind]:
        """The kinds of its weights."""
        return {matrix.kind for matrix in self.layout.matrices}

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.do("ef_model_delete", self.handle)

    # ------------------------------------------------------------------------------------------------------ weights

    def _kind(self, part: Part) -> Kind:
        if part.weight in self._tables:
            return Kind.FP32
        source = self._weights.sources[part.weight]
        if isinstance(source.stored, QuantizedTensor) and source.part is None:
            return Kind[source.stored.format.name.upper() + ("_EXACT" if self._exact else "")]
        return {"F16": Kind.FP16, "BF16": Kind.BF16}.get(source.stored.dtype, Kind.FP32)

    def _load_matrices(self) -> None:
        """Fill all tiles; as many weights, or stacks of them, are in memory at a time as there are loaders."""
        fills: dict[str, list[tuple[int, Kind, Fill]]] = {}
        for number, matrix in enumerate(self.layout.matrices):
            sizes = matrix.kind, matrix.rows, matrix.cols, matrix.tiles
            self.library.call("ef_matrix_new", self.handle, *sizes)
            for fill in matrix.fills:
                fills.setdefault(fill.part.weight, []).append((number, matrix.kind, fill))
        with ThreadPoolExecutor(LOADERS) as pool:  # calls of the library release the interpreter's lock
            list(pool.map(self._load_matrix, fills.values()))

    def _load_matrix(self, uses: list[tuple[int, Kind, Fill]]) -> None:
        """Fill the tiles that one weight, or one stack of weights, is in."""
        data, scales = self._data(uses[0][2].part, uses[0][1], stacked=uses[0][2].entry is not None)
        for number, _, fill in uses:
            rows, factors = (
                x if x is None else np.ascontiguousarray(x if fill.entry is None else x[fill.entry])
                for x in (data, scales)
            )
            assert rows is not None
            where = number, fill.tile, fill.step, 0, len(rows)
            self.library.call("ef_matrix_fill", self.handle, *where, pointer(rows), pointer(factors))

    def _data(self, part: Part, kind: Kind, *, stacked: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """A weight's rows [outputs, ...], with `stacked` [count, outputs, ...], and their scales or None, as files hold them."""
        if part.weight in self._tables:
            return self._tables[part.weight].astype(np.float32, copy=False), None
        source = self._weights.sources[part.weight]
        if kind.grouped:
            assert isinstance(source.stored, QuantizedTensor)
            codes, scales = source.stored.quantized()
            shape = (-1, part.outputs) if stacked else (part.outputs,)
            return codes.reshape(*shape, codes.shape[-1]), scales.reshape(*shape, scales.shape[-1])
        array = source.read()
        array = array if kind in (Kind.FP16, Kind.BF16) else array.astype(np.float32, copy=False)
        return array if stacked else array.reshape(part.outputs, part.inputs), None


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
        if len(ids) != self.batch or (mask is not None and mask.shape != (self.batch, past + new)):
            raise InputError(f"ids must be [{self.batch}, T], and their mask [{self.batch}, {past} + T]")
        keep = keep or new
        out = np.empty((self.batch, keep, self.model.vocab), np.float32)
        counted = None if mask is None or np.all(mask) else np.cumsum(mask, 1, dtype=np.int32) - 1
        if any(rotation.layer.per_length for rotation, _ in self.model.layout.rotations):
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
        for rotation, vector in self.model.layout.rotations:
            layer = rotation.layer
            if not layer.per_length:
                continue
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
