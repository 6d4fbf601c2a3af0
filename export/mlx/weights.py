"""The tensors of an mlx-lm folder: plain floats, MLX's own affine quantization, or edgeformer's groups kept bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import numpy as np

from edgeformer.checkpoint.manifest import Compute
from edgeformer.checkpoint.saving import as_numpy
from edgeformer.errors import ExportError, RuntimeUnavailable
from edgeformer.spec import Linear, Model, Stacked, Table, leaves
from edgeformer.weights.affine import BITS, GROUP_SIZES, AffineTensor
from edgeformer.weights.binding import Source, Weights
from edgeformer.weights.formats import GROUP, QUANTIZED, Format, QuantizedTensor
from edgeformer.weights.held import Held, cast_weights
from edgeformer.weights.parts import Cut, Stack
from edgeformer.weights.precision import FLOAT_TYPES
from edgeformer.weights.rounding import GROUP_PRECISIONS, group_format, in_groups
from edgeformer.weights.safetensors_writer import Group

PLAIN = {name: t.numpy for name, t in FLOAT_TYPES.items()}
PRECISIONS = (*PLAIN, *(f"{bits}bit" for bits in BITS), *GROUP_PRECISIONS)


@dataclass(frozen=True)
class Quantization:
    """MLX's own quantization: the arguments of `mlx.core.quantize`, and the dtype of scales and unquantized tensors."""

    bits: int
    group_size: int
    dtype: np.dtype


@dataclass(frozen=True)
class WeightPlan:
    """How every tensor is stored. `own`: MLX's quantization; None for plain weights and edgeformer's groups (`same_bits`)."""

    precision: str
    weights: Weights
    dtype: Compute
    own: Quantization | None
    same_bits: bool = False

    def label(self) -> str:
        """The name of this precision in manifests."""
        return self.precision if self.own is None else f"{self.precision}-g{self.own.group_size}"


@dataclass
class Made:
    """The groups to write, the config's `quantization` settings, and the matrices left unquantized among quantized ones."""

    groups: list[Group]
    settings: dict[str, Any]
    left: set[str]


def plan(
    spec: Model,
    weights: Weights,
    precision: str | None,
    group_size: int | None,
    dtype: str | None,
    keep: Sequence[str] = (),
) -> WeightPlan:
    """Decide how every tensor is stored; see `export_mlx` for the arguments.

    Raises:
        ExportError: the precision, dtype or group size is unknown, or impossible for these weights.
        RuntimeUnavailable: MLX's own quantization needs MLX, which is not installed.
    """
    ours = group_format(weights)
    if dtype is not None and dtype not in PLAIN:
        raise ExportError(f"unknown dtype {dtype!r}; use one of {', '.join(PLAIN)}")
    if (precision or ours) in GROUP_PRECISIONS:
        return _same_bits(spec, weights, precision or str(ours), group_size, dtype, keep)
    if keep:
        raise ExportError(f"--keep applies only to {' and '.join(QUANTIZED)}")
    precision, group_size = _defaults(weights.sources, precision, group_size)
    if precision not in PLAIN and dtype is None:
        dtype = _stored_precision(weights.sources)
    own = _quantization(precision, group_size, dtype)
    if own is not None and ours is not None:
        raise ExportError(
            f"the checkpoint is already quantized ({ours}), so --precision {precision} would round it twice; export it as"
            f" {ours}, or quantize the original"
        )
    return WeightPlan(precision, weights, cast(Compute, precision if own is None else dtype), own)


def _same_bits(
    spec: Model,
    weights: Weights,
    precision: str,
    group_size: int | None,
    dtype: str | None,
    keep: Sequence[str],
) -> WeightPlan:
    if group_size not in (None, GROUP):
        raise ExportError(
            f"--group-size {group_size} is not possible: {precision} has a fixed group size of {GROUP}; use 4bit or 8bit"
        )
    if dtype == "bf16":
        raise ExportError(
            f"bf16 can't represent {precision}'s fp16 scales exactly, so weights would differ; use --dtype fp16 or fp32"
        )
    return WeightPlan(
        precision, in_groups(spec, weights, precision, keep), cast(Compute, dtype or "fp16"), None, same_bits=True
    )


def _defaults(sources: dict[str, Source], precision: str | None, group_size: int | None) -> tuple[str, int]:
    """Precision and group size, each defaulting to the checkpoint's."""
    affine = [s.stored for s in sources.values() if isinstance(s.stored, AffineTensor)]
    if precision is None:
        precision = f"{affine[0].bits}bit" if affine else _stored_precision(sources)
    if group_size is None:
        group_size = affine[0].group_size if affine and precision == f"{affine[0].bits}bit" else 64
    return precision, group_size


def _stored_precision(sources: dict[str, Source]) -> str:
    """The widest stored float dtype."""
    types = {source.stored.dtype for source in sources.values()}
    return next(
        (precision for precision, t in (("fp32", "F32"), ("bf16", "BF16"), ("fp16", "F16")) if t in types), "fp32"
    )


def _quantization(precision: str, group_size: int, dtype: str | None) -> Quantization | None:
    if precision not in PRECISIONS:
        raise ExportError(f"unknown MLX precision {precision!r}; use one of {', '.join(PRECISIONS)}")
    if precision in PLAIN:
        if dtype is not None:
            raise ExportError(
                f"--dtype applies only to quantized weights; --precision {precision} already sets the dtype"
            )
        return None
    assert dtype is not None
    if group_size not in GROUP_SIZES:
        raise ExportError(f"MLX doesn't support group size {group_size}; use one of {', '.join(map(str, GROUP_SIZES))}")
    try:
        version("mlx")
    except PackageNotFoundError:
        raise RuntimeUnavailable('MLX quantization needs the package mlx; pip install "edgeformer[mlx]"') from None
    return Quantization(int(precision.removesuffix("bit")), group_size, PLAIN[dtype])


def make(
    spec: Model,
    plan: WeightPlan,
    names: Mapping[str, Sequence[tuple[Cut | Stack, str]]],
    unquantized: tuple[str, ...] = (),
) -> Made:
    """The groups of tensors to write, as planned.

    names: stored name -> the canonical tensors that it holds, and where; a `Stack` stores a canonical tensor as several.
    unquantized: ends of the paths that the folder's reader can't load quantized.
    """
    maps = {f"{path}.weight": leaf for path, leaf in leaves(spec) if isinstance(leaf, (Linear, Table, Stacked))}
    made, kinds = Made([], {}, set()), {}
    for stored, members in names.items():
        first = members[0]
        if isinstance(first[0], Stack):
            made.groups.append(_several(first[0], stored, plan.weights.sources[first[1]], PLAIN[plan.dtype]))
            continue
        held = Held(tuple((cut, plan.weights.sources[name]) for cut, name in members if not isinstance(cut, Stack)))
        shape, path = held.shape, stored.removesuffix(".weight")
        wanted = (plan.own is not None or plan.same_bits) and first[1] in maps and not path.endswith(unquantized)
        format = _format(held, stored) if plan.same_bits else None
        if wanted and format is not None and held.whole_rows:
            made.groups.append(_kept(path, held, format, PLAIN[plan.dtype]))
            kinds[path] = {"group_size": GROUP, "bits": format.bits, "mode": "affine"}
        elif plan.own is not None and wanted and held.whole_rows and shape[-1] % plan.own.group_size == 0:
            made.groups.append(_quantized(path, held, plan.own))
            kinds[path] = {"group_size": plan.own.group_size, "bits": plan.own.bits, "mode": "affine"}
        else:
            if wanted:
                made.left.add(stored)
            dtype = PLAIN[plan.dtype]
            made.groups.append(Group({stored: (dtype, shape)}, lambda held=held, dtype=dtype: [held.read(dtype)]))
    if kinds:
        common = max(kinds.values(), key=list(kinds.values()).count)
        made.settings = {**common, **{path: kind for path, kind in kinds.items() if kind != common}}
    return made


def _several(stack: Stack, stored: str, source: Source, dtype: np.dtype) -> Group:
    """One tensor as the several that a type stores, StableLM's norms of each head."""
    names = [stored.replace("{e}", str(e)) for e in range(stack.count)]
    shape = stack.part_shape(source.shape)

    def make() -> list[np.ndarray]:
        return [np.ascontiguousarray(x) for x in stack.parts(cast_weights(source.read(), dtype))]

    return Group({name: (dtype, shape) for name in names}, make)


def _format(held: Held, name: str) -> Format | None:
    """The common format of a tensor's parts; None if they are unquantized."""
    found = {s.stored.format if isinstance(s.stored, QuantizedTensor) else None for _, s in held.members}
    if len(found) > 1:
        raise ExportError(
            f"{name} joins several weight matrices of different formats; quantize them to the same format"
        )
    return found.pop()


def _kept(path: str, held: Held, format: Format, dtype: np.dtype) -> Group:
    """Keep edgeformer's codes: scale · (code − zero) is exactly MLX's scale · code + bias with bias = −zero · scale."""
    shape = held.shape
    coded = (np.dtype(np.uint32), (*shape[:-1], shape[-1] * format.bits // 32))
    grouped = (dtype, format.scales_shape(shape))

    def make() -> list[np.ndarray]:
        parts = [s.stored.quantized() for _, s in held.members if isinstance(s.stored, QuantizedTensor)]
        codes, scales = (held.assembled([part[n] for part in parts]) for n in (0, 1))
        biases = scales.astype(np.float32) * -format.zero
        if dtype == np.float16 and np.abs(biases).max(initial=0) > 65504:
            raise ExportError(f"{path}: the bias −{format.zero} · scale exceeds fp16's range; use --dtype fp32")
        return [np.ascontiguousarray(codes).view("<u4"), scales.astype(dtype), biases.astype(dtype)]

    return Group({f"{path}.weight": coded, f"{path}.scales": grouped, f"{path}.biases": grouped}, make)


def _quantized(path: str, held: Held, q: Quantization) -> Group:
    """A weight as codes, scales and biases: the stored ones if bits and group size match, otherwise from `mx.quantize`."""
    shape, (cut, source) = held.shape, held.members[0]
    stored = source.stored
    kept = len(held.members) == 1 and cut.plain and source.part is None and isinstance(stored, AffineTensor)
    kept = kept and (stored.bits, stored.group_size) == (q.bits, q.group_size)  # type: ignore[union-attr]
    coded = (np.dtype(np.uint32), (*shape[:-1], shape[-1] * q.bits // 32))
    grouped = (q.dtype, (*shape[:-1], shape[-1] // q.group_size))

    def make() -> list[np.ndarray]:
        if kept:
            assert isinstance(stored, AffineTensor)
            return [stored.codes(), stored.scales.read().astype(q.dtype), stored.biases.read().astype(q.dtype)]
        import mlx.core as mx

        found = mx.quantize(mx.array(held.read(q.dtype)), group_size=q.group_size, bits=q.bits)
        return [as_numpy(found[0]), *map(as_numpy, found[1:])]

    return Group({f"{path}.weight": coded, f"{path}.scales": grouped, f"{path}.biases": grouped}, make)
