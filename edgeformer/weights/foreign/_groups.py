"""What the readers share: unpacking of words, weights of scales, codes and zeros, and q4 where it is what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.files.quoting import shown
from edgeformer.weights.formats import GROUP, QUANTIZED, QuantizedTensor, pack
from edgeformer.weights.safetensors_file import StoredTensor, check_finite, read_raw

_Q4 = QUANTIZED["q4"]


@dataclass(frozen=True)
class Joined:
    """A checkpoint's tensors with quantized weights in place of their pieces.

    method: the tool's name for notes; unused: stored names that aren't needed -> why.
    """

    tensors: dict[str, StoredTensor]
    method: str
    unused: dict[str, str]

    def notes(self) -> list[str]:
        """What became of the weights, for the user."""
        kept = sum(isinstance(t, KeptCodes) for t in self.tensors.values())
        read = sum(isinstance(t, ForeignTensor) for t in self.tensors.values())
        made = []
        if kept:
            made.append(f"{kept} weights keep the codes of {self.method} as q4")
        if read:
            made.append(
                f"{read} weights are what the codes of {self.method} stand for, in float32; q4 and q8 round them again"
            )
        return made


@dataclass(frozen=True)
class ForeignTensor(StoredTensor):
    """A weight that another tool quantized; `shape` is the weight's. Reads as float32. `pieces`: what it is stored in."""

    pieces: tuple[StoredTensor, ...]

    @property
    def raw(self) -> bool:
        """False: codes are not values."""
        return False

    def parts(self) -> tuple[StoredTensor, ...]:
        return self.pieces

    def values(self) -> np.ndarray:
        """The weight in float32, unchecked."""
        raise NotImplementedError

    def read(self) -> np.ndarray:
        """The weight in float32.

        Raises:
            CheckpointError: a file is truncated, or a value isn't finite.
        """
        values = np.ascontiguousarray(self.values(), np.float32).reshape(self.shape)
        check_finite(self, values.reshape(-1))
        return values


@dataclass(frozen=True)
class GroupedTensor(ForeignTensor):
    """scale · (code − zero), with a scale and a zero per group of inputs."""

    bits: int

    def codes(self) -> np.ndarray:
        """uint8 [outputs, inputs]."""
        raise NotImplementedError

    def scales(self) -> np.ndarray:
        """float32 [outputs, groups]."""
        raise NotImplementedError

    def zeros(self) -> np.ndarray:
        """Integers [outputs or 1, groups or 1]."""
        raise NotImplementedError

    def group_of(self) -> np.ndarray | None:
        """Each input's group [inputs]; None if groups are equal runs of inputs."""
        return None

    def values(self) -> np.ndarray:
        scales, group_of = self.scales(), self.group_of()
        zeros = np.broadcast_to(self.zeros(), scales.shape).astype(np.float32)
        codes = self.codes().astype(np.float32)
        if group_of is None:
            grouped = codes.reshape(*scales.shape, -1)
            return (grouped - zeros[..., None]) * scales[..., None]
        return (codes - zeros[:, group_of]) * scales[:, group_of]

    def kept(self) -> StoredTensor:
        """The same weight with its codes as q4, if they are: 4 bits, zero 8, whole groups of 32 in order, fp16 scales."""
        inputs = self.shape[-1]
        if self.bits != 4 or self.group_of() is not None or np.any(self.zeros() != _Q4.zero):
            return self
        # values are checked where the weight is read, since a caller may allow NaN
        scales = replace(self, pieces=tuple(replace(p, allow_nonfinite=True) for p in self.pieces)).scales()
        with np.errstate(over="ignore"):
            same = np.array_equal(scales.astype(np.float16).astype(np.float32), scales)
        if not same or inputs % scales.shape[1] or inputs // scales.shape[1] % GROUP:
            return self
        place = self.name, self.file, self.offset, self.nbytes
        return KeptCodes(*place, "Q4", self.shape, _Q4, self, identity=self.identity)


@dataclass(frozen=True)
class KeptCodes(QuantizedTensor):
    """Another tool's codes as q4: a scale of a longer group is repeated."""

    of: GroupedTensor

    def parts(self) -> tuple[StoredTensor, ...]:
        return self.of.parts()

    def quantized(self) -> tuple[np.ndarray, np.ndarray]:
        scales = self.of.scales().astype(np.float16)
        check_finite(self, np.ascontiguousarray(scales).reshape(-1))
        repeats = self.shape[-1] // scales.shape[1] // GROUP
        return pack(self.of.codes(), self.format), np.repeat(scales, repeats, axis=1)


def words(tensor: StoredTensor) -> np.ndarray:
    """The tensor's 32-bit words, unsigned."""
    return read_raw(tensor, np.dtype("<u4"), tensor.shape)


def piece(
    stored: Mapping[str, StoredTensor], name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...], where: str
) -> StoredTensor:
    """A stored tensor that a weight needs. shape: its sizes, None for any.

    Raises:
        CheckpointError: it is missing, or has another type or shape.
    """
    found = stored.get(name)
    if found is None:
        raise CheckpointError(f"{where}: {name} is missing, without which the weight can't be dequantized")
    fits = len(found.shape) == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
    if found.dtype not in dtypes or not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise CheckpointError(
            f"{where}: {name} is {list(found.shape)} of type {found.dtype}; {' or '.join(dtypes)} [{wanted}] belongs there"
        )
    return found


FLOATS = ("F16", "BF16", "F32")


def floats(tensor: StoredTensor) -> np.ndarray:
    """A tensor of floats in float32; NaN and infinities are refused where the weight is read."""
    types = {"F16": "<f2", "F32": "<f4"}
    if tensor.dtype in types:
        return read_raw(tensor, np.dtype(types[tensor.dtype]), tensor.shape).astype(np.float32)
    import ml_dtypes

    return read_raw(tensor, np.dtype(ml_dtypes.bfloat16), tensor.shape).astype(np.float32)


def whole_number(settings: Mapping[str, object], key: str, known: tuple[int, ...], where: str) -> int:
    """A setting of config.json's `quantization_config`.

    Raises:
        CheckpointError: it is not one of the known numbers.
    """
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value not in known:
        raise CheckpointError(
            f"{where}: quantization_config.{key} is {shown(value)}; {', '.join(map(str, known))} are read"
        )
    return value
