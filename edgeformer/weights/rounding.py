"""Weights quantized as they are read: what an exporter sees of a checkpoint that is to be rounded on the way out."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeformer.errors import CheckpointError, InputError
from edgeformer.spec import Linear, Model, Table, leaves
from edgeformer.weights.binding import Source, Weights
from edgeformer.weights.formats import QUANTIZED, Format, QuantizedTensor, check_divides, quantize
from edgeformer.weights.safetensors_file import StoredTensor

GROUP_PRECISIONS = (*QUANTIZED, "mixed")
"""What a model in our groups is called."""


@dataclass(frozen=True)
class Rounded(QuantizedTensor):
    """A source rounded to nearest when it is asked for. Nothing is kept."""

    source: Source

    def parts(self) -> tuple[StoredTensor, ...]:
        return self.source.stored.parts()

    def quantized(self) -> tuple[np.ndarray, np.ndarray]:
        return quantize(self.source.read(), self.format, name=self.name)


def quantizable(spec: Model) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of what `q4` and `q8` quantize: weights of linear maps, and the table of token embeddings.

    Position and segment tables, norms and biases are small and stay as they are; so do stacked maps (experts).
    """
    found = {}
    for path, leaf in leaves(spec):
        if isinstance(leaf, Linear):
            found[f"{path}.weight"] = (leaf.outputs, leaf.inputs)
        elif isinstance(leaf, Table) and path.rsplit(".", 1)[-1] == "embed":
            found[f"{path}.weight"] = (leaf.rows, leaf.width)
    return found


def chosen(spec: Model, keep: Sequence[str] = ()) -> list[str]:
    """The names of `quantizable` that no pattern of `keep` (shell style, `head.weight`, `*.ffn.*`) matches.

    Raises:
        InputError: a pattern that matches nothing.
        CheckpointError: a weight that can't be cut into groups.
    """
    every = quantizable(spec)
    for pattern in keep:
        if not fnmatch.filter(every, pattern):
            raise InputError(
                f"--keep {pattern!r} matches no quantizable tensor; they are called {', '.join(_some(every))}"
            )
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
    """The weights with what `chosen` names as `Rounded` tensors, each read and rounded when an exporter asks for it.

    Raises:
        CheckpointError: they are quantized already, or can't be.
    """
    format = QUANTIZED[precision]
    if has := stored_format(weights):
        raise CheckpointError(
            f"the checkpoint is quantized already ({has}): rounding it again to {precision} would lose more. Quantize the"
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
    """The weights as an export in q4, q8 or mixed reads them: those of a quantized checkpoint as they are, plain ones rounded.

    Raises:
        CheckpointError: a checkpoint of another format, which would be rounded twice; a weight that can't be held in groups.
        InputError: `mixed` of a plain checkpoint; `keep` of one whose tensors were chosen already.
    """
    has = group_format(weights)
    if has is None:
        if precision not in QUANTIZED:
            raise InputError(
                f"{precision} is what a checkpoint of `edgeformer quantize --budget` is in; this one isn't quantized"
            )
        return rounded(spec, weights, precision, keep)
    if has != precision:
        raise CheckpointError(
            f"the checkpoint is quantized already, to {has}; to {precision} it would be rounded twice. Export it as {has}, or"
            " quantize the original"
        )
    if keep:
        raise InputError("--keep chooses what is rounded, and this checkpoint is quantized already")
    return weights


def group_format(weights: Weights) -> str | None:
    """`q4`, `q8` or `mixed` if the weights are stored so; None for plain weights and MLX's own codes."""
    has = stored_format(weights)
    return has if has in GROUP_PRECISIONS else None


def stored_format(weights: Weights) -> str | None:
    """`q4`, `q8` or `mixed` if the weights are stored so; MLX's own name (`AFFINE4G64`) if in that; None if in neither."""
    found = {s.stored.format.name for s in weights.sources.values() if isinstance(s.stored, QuantizedTensor)}
    affine = sorted(d for d in weights.dtypes() if d.startswith("AFFINE"))
    if affine:
        return ", ".join(affine)
    return None if not found else found.pop() if len(found) == 1 else "mixed"


def stored_precision(weights: Weights) -> str:
    """fp32, bf16 or fp16: the widest type that is stored; fp32 for quantized weights, which only it holds exactly."""
    types = weights.dtypes()
    if types - {"F32", "F16", "BF16"} or "F32" in types or {"F16", "BF16"} <= types:
        return "fp32"
    return "bf16" if "BF16" in types else "fp16"


def bits_per_weight(weights: Weights, plain: Mapping[str, int] | None = None) -> float:
    """Of all weights together: codes and scales, and the others in their stored types, or `plain` bits each by canonical name."""
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
