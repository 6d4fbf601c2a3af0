"""`export --to gguf`: a folder with `model.gguf`, for llama.cpp and the tools built on it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.artefact import Exported, described, write_surroundings, writing_from
from edgeformer.checkpoint.companions.generation import generation_defaults
from edgeformer.checkpoint.companions.special import decoder_start
from edgeformer.checkpoint.companions.tokenizer import has_tokenizer
from edgeformer.checkpoint.gguf_archs._common import Architecture
from edgeformer.checkpoint.gguf_archs._rope import FACTORS, scaling_of
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.checkpoint.manifest import Compute
from edgeformer.errors import ExportError
from edgeformer.exporters.gguf.fitting import architecture
from edgeformer.exporters.gguf.tokenizer import check_in_llama_cpp, tokenizer_limits, tokenizer_metadata
from edgeformer.exporters.onnx.filling import Progress
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rope_longrope import LongRopeScaling
from edgeformer.spec import Model, layers, tensors
from edgeformer.spec.task import Task
from edgeformer.weights.binding import Source, Weights, stored_part
from edgeformer.weights.formats import QUANTIZED, QuantizedTensor
from edgeformer.weights.gguf_file import BLOCKS, interleaved, require_gguf, to_blocks
from edgeformer.weights.held import Held, cast_weights
from edgeformer.weights.parts import Cut, Stack
from edgeformer.weights.precision import FLOAT_TYPES
from edgeformer.weights.rounding import GROUP_PRECISIONS, group_format, in_groups, stored_precision
from edgeformer.weights.safetensors_file import DTYPES

MODEL_FILE = "model.gguf"
PLAIN = {name: t.safetensors for name, t in FLOAT_TYPES.items()}
PRECISIONS = (*PLAIN, *GROUP_PRECISIONS)
_FILE_TYPES = {name: t.gguf_file_type for name, t in (FLOAT_TYPES | QUANTIZED).items()} | {"mixed": 1024}


def export_gguf(
    loaded: LoadedModel,
    output: str | os.PathLike,
    *,
    precision: str | None = None,
    keep: Sequence[str] = (),
    no_tokenizer: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a GGUF artefact.

    Args:
        loaded: the model, from `edgeformer.load`.
        output: folder to write; it appears only when complete.
        precision: fp32, fp16, bf16; q4 (Q4_0) or q8 (Q8_0), including the embedding and the head. Defaults to the checkpoint's
            stored precision. Norms and biases are always float32.
        keep: name patterns of tensors that q4 and q8 leave unquantized.
        no_tokenizer: write no tokenizer.
        force: replace an existing folder even if it is not an artefact.
        progress: called with (bytes done, total bytes).

    Raises:
        ExportError: llama.cpp has no matching architecture or tokenizer (the message names the part), or writing failed.
        RuntimeUnavailable: the package gguf is not installed.
    """
    gguf = require_gguf()
    spec = loaded.spec
    weights, precision = _planned(spec, loaded.require_weights(), precision, keep)
    fitting = architecture(spec, loaded.model_type)
    name, metadata, arch = fitting.name, fitting.metadata, fitting.architecture
    tokenizer, remarks, limits = {}, [], None
    if not no_tokenizer:
        if not has_tokenizer(loaded.around):
            raise ExportError(f"{loaded.name} has no tokenizer; use --no-tokenizer to write the weights alone")
        tokenizer, remarks = tokenizer_metadata(loaded.around, spec.vocab)
        limits = tokenizer_limits(loaded.around)
    written = list(_tensors(spec, weights.sources, arch, precision))
    with writing_from(loaded, Path(output), force=force) as folder:
        writer = gguf.GGUFWriter(str(folder / MODEL_FILE), name)
        _say(gguf, writer, {"general.name": Path(loaded.name).resolve().name})
        _say(gguf, writer, {"general.file_type": _FILE_TYPES[precision], "general.quantization_version": 2})
        _say(gguf, writer, {f"general.sampling.{key}": value for key, value in _sampling(loaded).items()})
        _say(gguf, writer, {f"{name}.{key}": value for key, value in (metadata | _start(loaded)).items()})
        _say(gguf, writer, (tokenizer or {"tokenizer.ggml.model": "no_vocab"}) | arch.around(spec))
        _write(gguf, writer, written, progress)
        remarks += write_surroundings(loaded, folder)
        if tokenizer:
            check_in_llama_cpp(loaded.around, folder / MODEL_FILE)
        quantized = bundle.has_own_bits(precision)
        coarse = arch.compute
        compute = coarse.get(precision) or cast(Compute, precision if precision in FLOAT_TYPES else "int8")
        manifest = described(
            loaded, folder, format="gguf", precision=precision, compute=compute, target=name, spec_inside=True
        )
        made_by = loaded.quantization or {"method": "rtn"}
        bits_each = _bits_per_weight(gguf, written)
        manifest["quantization"] = {**made_by, "bits_per_weight": bits_each} if quantized else None
        manifest["tokenizer"] = limits
        bundle.write_manifest(folder, manifest)
    notes = [*loaded.notes, *fitting.notes, *arch.lacks(spec), *remarks]
    scaling = scaling_of(spec)
    if isinstance(scaling, LongRopeScaling):
        notes.append(
            f"llama.cpp chooses LongRoPE's factors by the size of its context, not by the tokens in it: up to"
            f" {scaling.original_context} (-c {scaling.original_context}) it computes this model"
        )
    if precision in coarse:
        notes.append(f"llama.cpp's {name} looks its activation up in an fp16 table, so verdicts use the fp16 tolerance")
    if quantized and (split := [t.name for t in written if t.split]):
        notes.append(
            f"not quantized: {len(split)} tensors ({split[0]}, ...): llama.cpp stores them in another order, across the groups of"
            " the checkpoint's codes"
        )
    if quantized:
        notes.append(
            "llama.cpp rounds activations to int8 where weights are quantized, so its logits differ from other runtimes'"
        )
    return Exported(Path(output), manifest, notes)


def _sampling(loaded: LoadedModel) -> dict[str, Any]:
    """The model's generation defaults as `general.sampling.*` values, llama.cpp's own defaults; empty if it has none."""
    sampling = generation_defaults(loaded.around).sampling
    found: dict[str, Any] = {}
    if sampling.temperature:
        found = {"temp": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        found |= {"min_p": sampling.min_p} if sampling.min_p else {}
    if sampling.rules is not None and sampling.rules.repetition_penalty != 1:
        found["penalty_repeat"] = sampling.rules.repetition_penalty
    return found


def _planned(spec: Model, weights: Weights, precision: str | None, keep: Sequence[str]) -> tuple[Weights, str]:
    if precision is None:
        precision = group_format(weights) or stored_precision(weights)
    if precision not in PRECISIONS:
        raise ExportError(f"unknown GGUF precision {precision!r}; use one of {', '.join(PRECISIONS)}")
    if precision not in PLAIN:
        return in_groups(spec, weights, precision, keep), precision
    if keep:
        raise ExportError(f"--keep applies only to {' and '.join(QUANTIZED)}")
    return weights, precision


def _start(loaded: LoadedModel) -> dict[str, Any]:
    """The id that an encoder–decoder model's answers begin with."""
    asks = loaded.spec.task == Task.TEXT2TEXT_GENERATION
    return {"decoder_start_token_id": decoder_start(loaded.around)} if asks else {}


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file; its type and shape are known before its values are computed. `split`: quantized in the source, but
    in another order, so that its codes can't be kept."""

    name: str
    shape: tuple[int, ...]
    kind: str
    make: Any
    split: bool = False


def _tensors(spec: Model, sources: dict[str, Source], arch: Architecture, precision: str) -> Iterator[_Tensor]:
    """The file's tensors, in the model's order; those that llama.cpp stores as one are assembled from their parts."""
    found: dict[str, list[tuple[Cut, str]]] = {}
    names, copies = arch.name_map(spec), arch.copies(spec)
    for name in tensors(arch.computed(spec)):
        part = stored_part(names, name)
        if part.name == name:
            raise ExportError(f"llama.cpp's architecture for this spec has no tensor for {name}")
        assert not isinstance(part, Stack)  # no architecture splits a tensor
        if name in copies:
            yield _copied(part.name, sources[copies[name][0]], copies[name][1], precision)
            continue
        found.setdefault(part.name, []).append((part, name))
    heads = _interleaved_heads(spec, arch)
    for name, factors in arch.rope_factors(spec).items():
        yield _Tensor(name, factors.shape, "F32", lambda factors=factors: factors)
    for full, parts in found.items():
        held = Held(tuple((part, sources[name]) for part, name in parts))
        turned, shape = [heads.get(name, 0) for _, name in parts], held.shape
        formats = {s.stored.format if isinstance(s.stored, QuantizedTensor) else None for _, s in held.members}
        if len(formats) > 1:
            raise ExportError(
                f"{full} joins several weight matrices of different formats; quantize them to the same format"
            )
        format = formats.pop() if precision not in PLAIN else None
        if format is not None and held.whole_rows:
            kind = next(k for k, f in BLOCKS.items() if f == format)
        else:
            vector = len(shape) == 1 or full.endswith("norm.weight")
            kind = "F32" if vector else PLAIN.get(precision) or _unquantized([s for _, s in held.members])
        make = lambda held=held, turned=turned, kind=kind: _made(held, turned, kind)  # noqa: E731
        yield _Tensor(full, shape, kind, make, split=format is not None and kind not in BLOCKS)


def _copied(name: str, source: Source, factor: float, precision: str) -> _Tensor:
    """A scaled copy of another tensor. Scaled codes would be other codes, so that it is never quantized."""
    kind = PLAIN.get(precision, "F16" if isinstance(source.stored, QuantizedTensor) else _unquantized([source]))
    make = lambda: cast_weights(source.read() * np.float32(factor), DTYPES[kind])  # noqa: E731
    return _Tensor(name, source.shape, kind, make)


def _bits_per_weight(gguf: Any, written: list[_Tensor]) -> float:
    """Average over the weights in the file, scales included."""
    bits = count = 0.0
    for t in written:
        if t.name not in FACTORS:
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[t.kind]]
            count += math.prod(t.shape)
            bits += math.prod(t.shape) / block * size * 8
    return round(bits / count, 3)


def _unquantized(members: list[Source]) -> str:
    """The dtype of a matrix left unquantized among quantized ones: its stored dtype, or F32 if it can't be copied as stored."""
    return members[0].stored.dtype if members[0].stored.dtype in DTYPES else "F32"


def _interleaved_heads(spec: Model, arch: Architecture) -> dict[str, int]:
    """Canonical tensor name -> number of heads whose rows have to be reordered for interleaved RoPE."""
    counts = {}
    for path, layer, _ in layers(spec):
        for name in arch.interleaved:
            leaf = name.rsplit(".", 1)[-1]
            if isinstance(layer, GQA) and path.endswith(name.rsplit(".", 1)[0]):
                for kind in ("weight", "bias"):
                    counts[f"{path}.{leaf}.{kind}"] = layer.heads if leaf == "q" else layer.kv_heads
    return counts


def _made(held: Held, heads: list[int], kind: str) -> np.ndarray:
    if kind in BLOCKS:
        parts = [s.stored.quantized() for _, s in held.members if isinstance(s.stored, QuantizedTensor)]
        turned = [[interleaved(x, count) for x in part] for part, count in zip(parts, heads, strict=True)]
        packed, scales = (held.assembled([part[n] for part in turned]) for n in (0, 1))
        return to_blocks(packed, scales, BLOCKS[kind])
    dtype = DTYPES[kind]
    return held.assembled(
        [cast_weights(interleaved(s.read(), count), dtype) for (_, s), count in zip(held.members, heads, strict=True)]
    )


def _say(gguf: Any, writer: Any, metadata: dict[str, Any]) -> None:
    """Write metadata, each value with the GGUF type that matches its Python type."""
    kinds = gguf.GGUFValueType
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_key_value(key, value, kinds.BOOL)
            case int():
                writer.add_key_value(key, value, kinds.UINT32)
            case float():
                writer.add_key_value(key, value, kinds.FLOAT32)
            case str():
                writer.add_key_value(key, value, kinds.STRING)
            case _:
                writer.add_array(key, value)


def _write(gguf: Any, writer: Any, written: list[_Tensor], progress: Progress | None) -> None:
    """Write the header, then one tensor at a time."""
    types = gguf.GGMLQuantizationType
    sizes = []
    for t in written:
        block, size = gguf.GGML_QUANT_SIZES[types[t.kind]]
        count = int(np.prod(t.shape))
        sizes.append(count // block * size)
        shape = t.shape if t.kind not in BLOCKS else (*t.shape[:-1], t.shape[-1] // block * size)
        dtype = np.dtype(np.uint8) if t.kind in BLOCKS else np.dtype(np.float32 if t.kind == "F32" else np.float16)
        raw = None if t.kind in ("F32", "F16") else types[t.kind]
        writer.add_tensor_info(t.name, shape, dtype, sizes[-1], raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done = 0
    for t, size in zip(written, sizes, strict=True):
        writer.write_tensor_data(np.ascontiguousarray(t.make()).reshape(-1).view(np.uint8))
        done += size
        if progress is not None:
            progress(done, sum(sizes))
    writer.close()


EXPORTER = export_gguf
