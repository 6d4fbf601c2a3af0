"""MLX's affine quantization as checkpoints store it: packed codes, and a scale and a bias per group of inputs.

`<path>.weight` is uint32 `[outputs, inputs · bits / 32]`, the first code in the lowest bits; `<path>.scales` and
`<path>.biases` are `[outputs, inputs / group_size]`; a weight is `scale · code + bias`
(https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.files.quoting import shown
from edgeformer.weights.bit_packing import unpacked
from edgeformer.weights.mlx_float import MODES, mlx_float
from edgeformer.weights.safetensors_file import StoredTensor, read_raw

BITS, GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)


@dataclass(frozen=True)
class AffineTensor(StoredTensor):
    """A quantized weight in place of a stored tensor: `shape` is the weight's; `nbytes` and `offset` locate its codes.
    Code that doesn't know this class reads float32."""

    scales: StoredTensor
    biases: StoredTensor
    bits: int
    group_size: int

    @property
    def raw(self) -> bool:
        """False: codes are not values."""
        return False

    def parts(self) -> tuple[StoredTensor, ...]:
        return (self, self.scales, self.biases)

    def read(self) -> np.ndarray:
        """The weight in float32, exactly scale · code + bias rounded once."""
        return dequantize(
            self.codes(),
            self.scales.read().astype(np.float32),
            self.biases.read().astype(np.float32),
            self.bits,
        )

    def codes(self) -> np.ndarray:
        """The packed codes, uint32 `[..., inputs · bits / 32]`."""
        return read_raw(self, np.dtype("<u4"), (*self.shape[:-1], self.shape[-1] * self.bits // 32))


def dequantize(packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int) -> np.ndarray:
    """float32 weights of uint32 codes `[..., inputs · bits / 32]` and float32 scales and biases `[..., inputs / group]`."""
    grouped = unpacked(packed, bits).reshape(*scales.shape, -1).astype(np.float32)
    return (grouped * scales[..., None] + biases[..., None]).reshape(*scales.shape[:-1], -1)


def join(stored: Mapping[str, StoredTensor], settings: object, where: str) -> dict[str, StoredTensor]:
    """A checkpoint's tensors, with each weight, its scales and its biases joined into one `AffineTensor`.

    Args:
        stored: stored name -> tensor.
        settings: the config's `quantization`: group_size, bits, mode, and overrides by path.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: the mode, the bits or the shapes are neither affine quantization nor one of MLX's small floats.
    """
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"{where}: quantization is {settings!r}; it must be an object with group_size and bits")
    out = dict(stored)
    for name in stored:
        if not name.endswith(".scales"):
            continue
        path = name.removesuffix(".scales")
        own = settings.get(path)
        entry = dict(settings)
        if isinstance(own, Mapping):
            entry |= {k: v for k, v in own.items() if v is not None}
        mode = entry.get("mode", "affine")
        if isinstance(mode, str) and mode in MODES:
            if (codes := stored.get(f"{path}.weight")) is None or f"{path}.biases" in stored:
                raise CheckpointError(f"{where}: {path} has no weight, or biases, which MLX's mode {mode} doesn't have")
            out[f"{path}.weight"] = mlx_float(codes, stored[name], mode, entry.get("group_size"), f"{where}: {path}")
            del out[name]
            continue
        if mode != "affine":
            raise CheckpointError(
                f"{where}: {path} is quantized in MLX's mode {shown(mode)}, which edgeformer doesn't read; affine and"
                f" {', '.join(MODES)} are. Give the original checkpoint"
            )
        parts = [stored.get(f"{path}.{part}") for part in ("weight", "scales", "biases")]
        if any(p is None for p in parts):
            raise CheckpointError(
                f"{where}: {path} has scales, but not both weight and biases, so it can't be dequantized"
            )
        out[f"{path}.weight"] = _affine(*parts, entry, f"{where}: {path}")  # type: ignore[arg-type]
        del out[name], out[f"{path}.biases"]
    return out


def _affine(
    weight: StoredTensor, scales: StoredTensor, biases: StoredTensor, entry: Mapping[str, object], where: str
) -> AffineTensor:
    group_size, words = entry.get("group_size") or 64, weight.shape[-1]
    # as in mlx-lm, the shapes decide: a path that the config doesn't name may fall under another path's entry
    inputs = scales.shape[-1] * group_size if isinstance(group_size, int) else 0
    bits = words * 32 // inputs if inputs else 0
    known = bits in BITS and group_size in GROUP_SIZES and weight.dtype == "U32"
    if not isinstance(group_size, int) or not known or words * 32 != inputs * bits:
        raise CheckpointError(
            f"{where} has codes {list(weight.shape)} of type {weight.dtype} and scales {list(scales.shape)} for groups of"
            f" {group_size}: that is not affine quantization with {', '.join(map(str, BITS))} bits"
        )
    if scales.shape != biases.shape or scales.shape[:-1] != weight.shape[:-1]:
        raise CheckpointError(
            f"{where}: scales {list(scales.shape)} and biases {list(biases.shape)} don't fit the codes"
        )
    shape = (*weight.shape[:-1], inputs)
    kind = f"AFFINE{bits}G{group_size}"
    return AffineTensor(
        weight.name,
        weight.file,
        weight.offset,
        weight.nbytes,
        kind,
        shape,
        scales,
        biases,
        bits,
        group_size,
        identity=weight.identity,
    )
