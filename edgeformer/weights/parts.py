"""How a stored tensor holds a canonical one: whole, as a slice, as rows of a fused projection, per head, or one of several.

Fusion is a property of storage, not architecture: GPT-NeoX, Falcon, Phi-3 and ChatGLM store q, k and v in one matrix, each in an
order of its own, while a spec has q, k and v. Each class takes the canonical tensor out of a stored one and puts it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edgeformer.weights.formats import QuantizedTensor
from edgeformer.weights.safetensors_file import DTYPES, StoredTensor

if TYPE_CHECKING:
    import mlx.core as mx

Shape = tuple[int, ...]
X = TypeVar("X", np.ndarray, "mx.array")


@dataclass(frozen=True)
class Part:
    """One of `of` equal slices of a stored tensor along `axis`, transposed afterwards if `transposed`.

    GPT-2 stores linear maps as [inputs, outputs] and q, k, v side by side: `Part(name, 0, of=3, axis=1, transposed=True)`.
    """

    name: str
    index: int = 0
    of: int = 1
    axis: int = 0
    transposed: bool = False

    @property
    def plain(self) -> bool:
        """Whether the canonical tensor is the stored one, byte for byte."""
        return self.of == 1 and not self.transposed

    @property
    def whole_rows(self) -> bool:
        """Whether rows stay intact, so that values stored per row (scales) can be taken the same way."""
        return self.axis == 0 and not self.transposed

    @property
    def share(self) -> float:
        """The fraction of the stored tensor that it takes."""
        return 1 / self.of

    def take(self, x: X) -> X:
        """The canonical tensor of a stored one, a numpy or MLX array."""
        size = x.shape[self.axis] // self.of
        x = x[self._cut(x.ndim, size)]
        return x.T if self.transposed else x

    def put(self, whole: np.ndarray, x: np.ndarray) -> None:
        """Write a canonical tensor into its place in a stored one."""
        whole[self._cut(whole.ndim, whole.shape[self.axis] // self.of)] = x.T if self.transposed else x

    def shape(self, stored: Shape) -> Shape:
        """The shape that `take` returns for a stored shape; (-1,), which fits nothing, where it can't be cut."""
        shape = list(stored)
        if self.axis >= len(shape) or shape[self.axis] % self.of:
            return (-1,)
        shape[self.axis] //= self.of
        return tuple(reversed(shape)) if self.transposed else tuple(shape)

    def whole(self, shape: Shape) -> Shape:
        """The stored shape for a canonical one."""
        out = list(reversed(shape) if self.transposed else shape)
        out[self.axis] *= self.of
        return tuple(out)

    def _cut(self, ndim: int, size: int) -> tuple[slice, ...]:
        cut = [slice(None)] * ndim
        cut[self.axis] = slice(self.index * size, (self.index + 1) * size)
        return tuple(cut)


@dataclass(frozen=True)
class Rows:
    """Rows `start:stop` of every block of `per` rows, one block after the other.

    Side by side, as in Phi-3: one block, `Rows(name, 0, q, q + 2 * kv)`. Head by head, as in GPT-NeoX:
    `Rows(name, 0, dim, 3 * dim)`.
    """

    name: str
    start: int
    stop: int
    per: int

    plain = False
    whole_rows = True

    @property
    def share(self) -> float:
        """The fraction of the stored tensor that it takes."""
        return (self.stop - self.start) / self.per

    def take(self, x: X) -> X:
        """The canonical tensor of a stored one, a numpy or MLX array."""
        rest = tuple(x.shape[1:])
        return x.reshape((-1, self.per, *rest))[:, self.start : self.stop].reshape((-1, *rest))

    def put(self, whole: np.ndarray, x: np.ndarray) -> None:
        """Write a canonical tensor into its place in a stored one."""
        rest = whole.shape[1:]
        blocks = whole.reshape(-1, self.per, *rest)
        blocks[:, self.start : self.stop] = x.reshape(-1, self.stop - self.start, *rest)

    def shape(self, stored: Shape) -> Shape:
        """The shape that `take` returns for a stored shape; (-1,), which fits nothing, where it can't be cut."""
        blocks, left = divmod(stored[0], self.per) if stored else (0, 1)
        return (-1,) if left else (blocks * (self.stop - self.start), *stored[1:])

    def whole(self, shape: Shape) -> Shape:
        """The stored shape for a canonical one."""
        return (shape[0] // (self.stop - self.start) * self.per, *shape[1:])


@dataclass(frozen=True)
class PerHead(Rows):
    """The same rows as one map per block, `[blocks, rows, inputs]`, or `[blocks, inputs, rows]` if `transposed`.

    DeepSeek-V2's kv_b_proj stores each head's key and value maps this way; the absorbed form uses the key's transposed.
    """

    transposed: bool = False

    @property
    def whole_rows(self) -> bool:  # type: ignore[override]
        """Whether rows stay intact."""
        return not self.transposed

    def take(self, x: X) -> X:
        cut = x.reshape((-1, self.per, x.shape[1]))[:, self.start : self.stop]
        return cut.swapaxes(1, 2) if self.transposed else cut

    def put(self, whole: np.ndarray, x: np.ndarray) -> None:
        blocks = whole.reshape(-1, self.per, whole.shape[1])
        blocks[:, self.start : self.stop] = x.swapaxes(1, 2) if self.transposed else x

    def shape(self, stored: Shape) -> Shape:
        if len(stored) != 2 or stored[0] % self.per:
            return (-1,)
        rows = self.stop - self.start
        return (stored[0] // self.per, *((stored[1], rows) if self.transposed else (rows, stored[1])))

    def whole(self, shape: Shape) -> Shape:
        return (shape[0] * self.per, shape[1] if self.transposed else shape[2])


@dataclass(frozen=True)
class Reordered:
    """Rows of every block of `len(order)` rows in another order: row i of the canonical block is the stored row `order[i]`.

    `of` selects the rows of the stored tensor, where it holds more than these.
    """

    name: str
    order: tuple[int, ...]
    of: Rows | None = None

    plain = False
    whole_rows = True

    @property
    def share(self) -> float:
        """The fraction of the stored tensor that it takes."""
        return 1.0 if self.of is None else self.of.share

    def take(self, x: X) -> X:
        """The canonical tensor of a stored one, a numpy or MLX array."""
        x = x if self.of is None else self.of.take(x)
        return self._reordered(x, np.array(self.order))

    def put(self, whole: np.ndarray, x: np.ndarray) -> None:
        """Write a canonical tensor into its place in a stored one."""
        y = self._reordered(x, np.argsort(self.order))
        if self.of is None:
            whole[...] = y
        else:
            self.of.put(whole, y)

    def shape(self, stored: Shape) -> Shape:
        """The shape that `take` returns for a stored shape; (-1,), which fits nothing, where it can't be cut."""
        shape = stored if self.of is None else self.of.shape(stored)
        return (-1,) if shape[0] % len(self.order) else shape

    def whole(self, shape: Shape) -> Shape:
        """The stored shape for a canonical one."""
        return shape if self.of is None else self.of.whole(shape)

    def _reordered(self, x: X, order: np.ndarray) -> X:
        """Rows of every block in an order; indices have the type that the array's own package needs."""
        blocks = np.arange(0, x.shape[0], len(order))
        index = (blocks[:, None] + order).reshape(-1)
        if isinstance(x, np.ndarray):
            return x[index]
        import mlx.core as mx

        return x[mx.array(index)]


@dataclass(frozen=True)
class Flat:
    """A vector that is stored as a matrix of `rows` rows: Cohere's norms, a row per head."""

    name: str
    rows: int

    plain = False
    whole_rows = False
    share = 1.0

    def take(self, x: X) -> X:
        """The canonical tensor of a stored one, a numpy or MLX array."""
        return x.reshape(-1)

    def put(self, whole: np.ndarray, x: np.ndarray) -> None:
        """Write a canonical tensor into its place in a stored one."""
        whole[...] = x.reshape(whole.shape)

    def shape(self, stored: Shape) -> Shape:
        """The shape that `take` returns for a stored shape; (-1,), which fits nothing, for another number of rows."""
        return (stored[0] * stored[1],) if len(stored) == 2 and stored[0] == self.rows else (-1,)

    def whole(self, shape: Shape) -> Shape:
        """The stored shape for a canonical one."""
        return (self.rows, shape[0] // self.rows)


@dataclass(frozen=True)
class Stack:
    """Several stored tensors as one: `name` holds `{e}`, 0 up to `count`; along a new first axis, or end to end if `flat`.

    Used for experts that are stored separately, and for StableLM's norms of each head.
    """

    name: str
    count: int
    flat: bool = False

    plain = False

    def names(self) -> list[str]:
        """The stored names."""
        return [self.name.replace("{e}", str(e)) for e in range(self.count)]

    def parts(self, x: np.ndarray) -> Sequence[np.ndarray]:
        """The stored tensors of a canonical one."""
        return np.split(x, self.count) if self.flat else list(x)

    def part_shape(self, shape: Shape) -> Shape:
        """The shape of each stored tensor, for a canonical one."""
        return (shape[0] // self.count, *shape[1:]) if self.flat else shape[1:]


@dataclass(frozen=True)
class Shifted:
    """A vector that is stored with a constant added: Gemma's norms in GGUF files, which hold 1 + w."""

    name: str
    by: float = 1.0

    plain = False
    whole_rows = False
    share = 1.0

    def take(self, x: X) -> X:
        """The canonical tensor of a stored one, a numpy or MLX array."""
        return x - self.by  # type: ignore[return-value]

    def put(self, whole: np.ndarray, x: np.ndarray) -> None:
        """Write a canonical tensor into its place in a stored one."""
        whole[...] = x + np.asarray(self.by, x.dtype)

    def shape(self, stored: Shape) -> Shape:
        """The shape that `take` returns for a stored shape."""
        return stored

    def whole(self, shape: Shape) -> Shape:
        """The stored shape for a canonical one."""
        return shape


@dataclass(frozen=True)
class Below:
    """A table whose first `rows` rows are not stored: RoBERTa's positions in GGUF files."""

    name: str
    rows: int

    plain = False
    whole_rows = False
    share = 1.0

    def take(self, x: X) -> X:
        """The canonical tensor of a stored one, a numpy or MLX array: zeros in the rows that aren't stored."""
        whole = np.zeros((x.shape[0] + self.rows, *x.shape[1:]), np.float32)
        whole[self.rows :] = x
        return whole  # type: ignore[return-value]

    def put(self, whole: np.ndarray, x: np.ndarray) -> None:
        """Write a canonical tensor into its place in a stored one."""
        whole[...] = x[self.rows :]

    def shape(self, stored: Shape) -> Shape:
        """The shape that `take` returns for a stored shape."""
        return (stored[0] + self.rows, *stored[1:]) if stored else (-1,)

    def whole(self, shape: Shape) -> Shape:
        """The stored shape for a canonical one."""
        return (shape[0] - self.rows, *shape[1:])


Cut = Part | Rows | Reordered | Flat | Shifted | Below
"""Takes a canonical tensor out of one stored tensor."""


@dataclass(frozen=True)
class StackedTensor(StoredTensor):
    """Several stored tensors in place of one. `file` and `offset` are those of the first."""

    members: tuple[StoredTensor, ...]

    @property
    def raw(self) -> bool:
        """False: its bytes are not contiguous."""
        return False

    def parts(self) -> tuple[StoredTensor, ...]:
        return tuple(part for member in self.members for part in member.parts())

    def read(self) -> np.ndarray:
        first = self.members[0].read()
        flat = len(self.shape) == len(first.shape)
        shape = (len(self.members) * (first.shape[0] if flat else 1), *first.shape[1 if flat else 0 :])
        whole = np.empty(shape, DTYPES.get(self.dtype, first.dtype))  # members' types may differ
        places = whole.reshape(len(self.members), *first.shape)
        places[0] = first
        for place, member in zip(places[1:], self.members[1:], strict=True):
            place[...] = member.read()  # one at a time, so that only one is there twice
        return whole


@dataclass(frozen=True)
class QuantizedStack(QuantizedTensor):
    """Several quantized tensors of one format in place of one, along a new axis."""

    members: tuple[QuantizedTensor, ...]

    def parts(self) -> tuple[StoredTensor, ...]:
        return tuple(part for member in self.members for part in member.parts())

    def quantized(self) -> tuple[np.ndarray, np.ndarray]:
        codes, scales = zip(*(member.quantized() for member in self.members), strict=True)
        return np.stack(codes), np.stack(scales)


def stacked(members: Sequence[StoredTensor], flat: bool) -> StoredTensor:
    """Tensors of one shape as one, along a new axis or end to end; quantized ones of one format keep their codes along a new
    axis. float32 where the types differ otherwise."""
    first = members[0]
    shape = (len(members) * first.shape[0], *first.shape[1:]) if flat else (len(members), *first.shape)
    quantized = [m for m in members if isinstance(m, QuantizedTensor)]
    if len(quantized) == len(members) and len({m.format for m in quantized}) == 1 and not flat:
        place = first.name, first.file, first.offset, sum(m.nbytes for m in members)
        format = quantized[0].format
        return QuantizedStack(*place, format.name.upper(), shape, format, tuple(quantized), identity=first.identity)
    kinds = {m.dtype if m.raw else "F32" for m in members}
    dtype = kinds.pop() if len(kinds) == 1 else "F32"
    nbytes = sum(m.nbytes for m in members)
    return StackedTensor(
        first.name, first.file, first.offset, nbytes, dtype, shape, tuple(members), identity=first.identity
    )


def numbered(entry: Cut | Stack, index: str) -> Cut | Stack:
    """The entry of a layer: `{i}` in its name is the layer's number."""
    entry = replace(entry, name=entry.name.replace("{i}", index))
    if isinstance(entry, Reordered) and entry.of is not None:
        return replace(entry, of=replace(entry.of, name=entry.name))
    return entry
