"""Weights quantized as they are read, for an exporter that rounds a checkpoint on the way out."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeformer.errors import CheckpointError, InputError
from edgeformer.spec import Linear, Model, Stacked, Table, leaves
from edgeformer.weights.binding import Source, Weights
from edgeformer.weights.formats import QUANTIZED, Format, QuantizedTensor, check_divides, quantize
from edgeformer.weights.safetensors_file import StoredTensor

GROUP_PRECISIONS = (*QUANTIZED, "mixed")
"""The precisions of a model in the group formats."""


@dataclass(frozen=True)
class Rounded(QuantizedTensor):
    """A source that is rounded to nearest on each read. Nothing is cached."""

    source: Source

    def parts(self) -> tuple[StoredTensor, ...]:
        return self.source.stored.parts()

    def quantized(self) -> tuple[np.ndarray, np.ndarray]:
        return quantize(self.source.read(), self.format, name=self.name)


def quantizable(spec: Model) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of what `q4` and `q8` quantize: weights of linear maps, stacks of them (experts, latent attention's
    maps per head), and the table of token embeddings.

    Position and segment tables, norms and biases are small and stay unquantized, and so do routers of experts (`Linear.routes`).
    """
    found = {}
    for path, leaf in leaves(spec):
        if isinstance(leaf, Linear) and not leaf.routes:
            found[f"{path}.weight"] = (leaf.outputs, leaf.inputs)
        elif isinstance(leaf, Stacked):
            found[f"{path}.weight"] = (leaf.count, leaf.outputs, leaf.inputs)
        elif isinstance(leaf, Table) and path.rsplit(".", 1)[-1] == "embed":
            found[f"{path}.weight"] = (leaf.rows, leaf.width)
    return found


def chosen(spec: Model, keep: Sequence[str] = ()) -> list[str]:
    """The names of `quantizable` that no pattern of `keep` (shell style, `head.weight`, `*.ffn.*`) matches.

    Raises:
        InputError: a pattern matches nothing, or nothing is left to quantize.
        CheckpointError: a weight can't be divided into groups.
    """
    every = quantizable(spec)
    for pattern in keep:
        if not fnmatch.filter(every, pattern):
            raise InputError(f"--keep {pattern!r} matches no quantizable tensor; these are {', '.join(_some(every))}")
    names = [n for n in every if not any(fnmatch.fnmatchcase(n, p) for p in keep)]
    if not names:
        raise InputError("--keep leaves nothing to quantize; export the model as it is")
    for name in names:
        check_divides(every[name], name)
    return names


def _some(names: dict[str, tuple[int, ...]]) -> Iterator[str]:
    listed = list(names)
    yield from listed[:8]
    if len(listed) > 8:
        yield "..."


def rounded(spec: Model, weights: Weights, precision: str, keep: Sequence[str] = ()) -> Weights:
    """The weights with those that `chosen` names as `Rounded` tensors, each read and rounded on demand.

    Raises:
        CheckpointError: they are already quantized, or can't be quantized.
    """
    format = QUANTIZED[precision]
    if has := stored_format(weights):
        raise CheckpointError(
            f"the checkpoint is already quantized ({has}); rounding it again to {precision} would lose more. Quantize the"
            " original, or export this one as it is"
        )
    sources = dict(weights.sources)
    for name in chosen(spec, keep):
        sources[name] = Source(_rounded(name, sources[name], format), None)
    return Weights(sources)


def _rounded(name: str, source: Source, format: Format) -> Rounded:
    t = source.stored
    return Rounded(
        name, t.file, t.offset, t.nbytes, format.name.upper(), source.shape, format, source, identity=t.identity
    )


def in_groups(spec: Model, weights: Weights, precision: str, keep: Sequence[str] = ()) -> Weights:
    """The weights for an export in q4, q8 or mixed: those of a quantized checkpoint unchanged, plain ones rounded.

    Raises:
        CheckpointError: the checkpoint has another format and would be rounded twice, or a weight can't be stored in groups.
        InputError: `mixed` for a plain checkpoint, or `keep` for one that is already quantized.
    """
    has = group_format(weights)
    if has is None:
        if precision not in QUANTIZED:
            raise InputError(
                f"{precision} is the format of checkpoints by `edgeformer quantize --budget`; this one isn't quantized"
            )
        return rounded(spec, weights, precision, keep)
    if has != precision:
        raise CheckpointError(
            f"the checkpoint is already quantized to {has}; as {precision} it would be rounded twice. Export it as {has}, or"
            " quantize the original"
        )
    if keep:
        raise InputError("--keep chooses which tensors are quantized, but this checkpoint is already quantized")
    return weights


def group_format(weights: Weights) -> str | None:
    """`q4`, `q8` or `mixed` if that is how the weights are stored; None for plain weights and MLX's own codes."""
    has = stored_format(weights)
    return has if has in GROUP_PRECISIONS else None


def stored_format(weights: Weights) -> str | None:
    """`q4`, `q8` or `mixed` for the group formats; `AFFINE4G64` and the like for MLX's affine format; None for plain ones."""
    found = {s.stored.format.name for s in weights.sources.values() if isinstance(s.stored, QuantizedTensor)}
    affine = sorted(d for d in weights.dtypes() if d.startswith("AFFINE"))
    if affine:
        return ", ".join(affine)
    return None if not found else found.pop() if len(found) == 1 else "mixed"


def stored_precision(weights: Weights) -> str:
    """fp32, bf16 or fp16: the widest type that is stored; fp32 for quantized weights, which only fp32 holds exactly."""
    types = weights.dtypes()
    if types - {"F32", "F16", "BF16"} or "F32" in types or {"F16", "BF16"} <= types:
        return "fp32"
    return "bf16" if "BF16" in types else "fp16"


def bits_per_weight(weights: Weights, plain: Mapping[str, int] | None = None) -> float:
    """Average over all weights: codes and scales, and the others in their stored types, or `plain` bits by canonical name."""
    bits = count = 0.0
    for name, source in weights.sources.items():
        stored, number = source.stored, math.prod(source.shape)
        count += number
        if isinstance(stored, QuantizedTensor):
            bits += number * stored.format.bits_per_weight
        elif plain is not None:
            bits += number * plain[name]
        else:
            bits += 8 * sum(t.nbytes for t in stored.parts()) * source.share
    return round(bits / count, 3)
