"""Build an ONNX graph from a spec: inputs and outputs with the ecosystem's names, the KV cache, the passes.

Names follow Hugging Face Optimum and transformers.js: `input_ids attention_mask position_ids past_key_values.N.key|value` ->
`logits present.N.key|value`. Only `batch_size` and the lengths are symbolic: transformers.js reads any other symbol as 0.
`num_logits_to_keep` defaults to 0 (all positions), so tools that don't know it need not feed it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgeformer import discover
from edgeformer.errors import ExportError
from edgeformer.exporters.onnx.functions import FunctionOps
from edgeformer.exporters.onnx.graph_ops import CONTRIB, DOMAIN, FLOAT, INT64, IR_VERSION, OPSET, GraphTensor
from edgeformer.exporters.onnx.handles import GraphHandle, Initializers
from edgeformer.exporters.onnx.merged import Merged, by_layer
from edgeformer.exporters.onnx.storage import Storage
from edgeformer.exporters.onnx.store import GraphStore
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.layers.rope import Rope
from edgeformer.ops.step import begin
from edgeformer.spec import Model, layers, tensors
from edgeformer.spec.task import Task

INT8 = ir.DataType.INT8
CacheScales = Mapping[tuple[str, str], np.ndarray]
CACHE_NAMES = {"k": "key", "v": "value"}
LOGITS_TO_KEEP = "num_logits_to_keep"


@dataclass
class BuiltGraph:
    """An ONNX model whose weights are declared but not filled in.

    `weights`: the canonical names in use; `codes`: the initializers of each quantized weight's codes; `constants`: the large
    build-time arrays; `notes`: the lowering's notes -> number of layers affected.
    """

    model: ir.Model
    weights: list[str]
    codes: dict[str, list[str]]
    constants: dict[str, np.ndarray]
    notes: dict[str, int]
    cache: str | None
    """`shared`: past and present may share one buffer of full length; `growing`: they may not; None: there is no cache."""


def target_class(target: str) -> type[FunctionOps]:
    """The lowering named `target`.

    Raises:
        ExportError: there is no such target.
    """
    module = discover.find("edgeformer.exporters.onnx.targets", target)
    if module is None:
        known = ", ".join(discover.names("edgeformer.exporters.onnx.targets"))
        raise ExportError(f"unknown ONNX target {target!r}; targets are {known}")
    return discover.declared(module, "Target", type)


def cache_names(spec: Model) -> dict[tuple[str, str], str]:
    """(layer path, tensor) -> `N.key`, `N.value`, ...: the ecosystem's names of cache tensors, numbered in layer order."""
    paths = [(path, list(layer.cache())) for path, layer, _ in layers(spec) if layer.cache()]
    side = "decoder." if isinstance(spec, EncoderDecoder) else ""
    return {
        (path, name): f"{i}.{side}{CACHE_NAMES.get(name, name)}"
        for i, (path, names) in enumerate(paths)
        for name in names
    }


def build(
    spec: Model,
    storage: dict[str, Storage],
    *,
    target: str = "cpu",
    compute: ir.DataType = FLOAT,
    context: int | None = None,
    inline: bool = False,
    accuracy_level: int | None = None,
    cache_scales: CacheScales | None = None,
    windows: Mapping[str, int] | None = None,
    program: str = "decoder",
) -> BuiltGraph:
    """Build the graph of a model.

    Args:
        spec: the model.
        storage: canonical tensor name -> how it is stored.
        target: the lowering, a file in `export/onnx/targets/`.
        compute: FLOAT or FLOAT16, the dtype of activations and KV cache.
        context: positions covered by RoPE tables; defaults to the model's context.
        inline: write fused ops as their bodies instead of as functions.
        accuracy_level: MatMulNBits' level: 0 multiplies dequantized weights; 4 rounds activations to int8 first; None is the
            target's default (`usual_levels`).
        cache_scales: (layer path, k or v) -> float32 [heads, dim], for an int8 KV cache: value = scale · code.
        windows: layer path -> window of each layer whose cache holds the window only, from `cache_windows`.
        program: which graph of an encoder–decoder model: `encoder`, or `decoder`, which takes its output (see `Merged`).

    Raises:
        ExportError: a layer or the target doesn't support the request.
    """
    kind = target_class(target)
    windows = windows or {}
    ops = kind(compute, inline=inline or not kind.writes_functions, accuracy_level=accuracy_level)
    ops.windowed = bool(windows)
    weights = Initializers(ops, storage)
    if isinstance(spec, EncoderDecoder) and program == "encoder":
        return _finished(ops, weights, storage, spec, *_encoder(ops, weights, spec), None)
    merged = Merged(ops, spec) if isinstance(spec, EncoderDecoder) else None
    inputs = {
        i.name: _input(ops, i.name, INT64, i.shape)
        for i in spec.inputs()
        if merged is None or i.name != "attention_mask"
    }
    _tables(ops, weights, spec, context or spec.context)
    names, sizes, store, keep, extra = cache_names(spec), _cache_sizes(spec), None, 0, []
    given: dict[str, Any] = {}
    if spec.task != Task.FEATURE_EXTRACTION:
        held = compute if cache_scales is None else INT8
        past = {
            key: _input(
                ops, f"past_key_values.{names[key]}", held, ("batch_size", h, _length("past", key[0], windows), d)
            )
            for key, (h, d) in sizes.items()
        }
        kept = past
        if merged is not None:
            kept = merged.kept(ops, past)
            inputs["attention_mask"] = merged.mask(ops, inputs["input_ids"], next(iter(kept.values())))
        store = GraphStore(ops, kept, inputs)
        store.windows.update(windows)
        for (path, name), scale in (cache_scales or {}).items():
            array = scale.astype(np.float32)[None, :, None, :]
            store.scales[path, name] = weights.constant(f"{path}.{name}.cache_scale", array)
        keep = _input(ops, LOGITS_TO_KEEP, INT64, (1,))
        keep.value.const_value = ir.tensor(np.zeros(1, np.int64), name=LOGITS_TO_KEEP)
        extra = [*(t.value for t in past.values()), keep.value]
        if isinstance(spec, EncoderDecoder):
            store.read = {
                key: _input(ops, f"past_key_values.{name}", compute, ("batch_size", h, "past_encoder_length", d))
                for key, (name, h, d) in read_names(spec).items()
            }
            extra = [*by_layer(t.value for t in (*past.values(), *store.read.values())), keep.value]
            given["memory_valid"] = ops.boolean(inputs["encoder_attention_mask"])
    root = GraphHandle(ops, spec, 0, weights)
    if merged is not None:
        assert store is not None
        extra = [*merged.values, *extra]
        store.read = merged.remembered(ops, root, store.read)
    if "prefix_length" in inputs:
        given["prefix"] = inputs["prefix_length"]
    with ops.scope("step"):
        mask, positions = inputs["attention_mask"], inputs.get("position_ids")
        new = ops.node("Shape", [inputs["input_ids"]], dims=(1,), dtype=INT64, start=1, end=2)
        step = begin(ops, mask, positions, new=new, slots=spec.counts_padding, store=store, keep=keep, **given)
    made = root(inputs, step)
    outputs = {name: (made[name], shape) for name, shape in spec.outputs().items()}
    values = [_output(ops, tensor, name, shape) for name, (tensor, shape) in outputs.items()]
    if store is not None:
        for key, name in names.items():
            if key not in store.present:
                raise ExportError(f"layer {key[0]} declares the cache tensor {key[1]!r} but never writes it")
            heads, dim = sizes[key]
            shape = ("batch_size", heads, _length("total", key[0], windows), dim)
            values.append(_output(ops, store.present[key], f"present.{name}", shape, store.past[key].dtype))
    if merged is not None and store is not None:
        for key, (name, heads, dim) in read_names(spec).items():
            shape = ("batch_size", heads, "present_encoder_length", dim)
            values.append(_output(ops, store.read[key], f"present.{name}", shape, compute))
        values = [*values[: len(outputs)], *by_layer(values[len(outputs) :])]
    given_values = [*(t.value for n, t in inputs.items() if merged is None or n != "attention_mask"), *extra]
    held = None if store is None else "growing" if store.grows else "shared"
    return _finished(ops, weights, storage, spec, given_values, values, held, [keep] if store is not None else [])


def cache_windows(spec: Model, target: str) -> dict[str, int]:
    """Layer path -> window of each layer whose cache needs to hold its window only.

    Raises:
        ExportError: the model has no such layer, or the target no operator for it.
    """
    if not target_class(target).windowed_caches:
        able = [n for n in discover.names("edgeformer.exporters.onnx.targets") if target_class(n).windowed_caches]
        raise ExportError(f"the target {target} has no windowed KV caches; use --target {', '.join(able)}")
    found = {path: window for path, layer, _ in layers(spec) if (window := layer.cache_window()) is not None}
    if not found:
        raise ExportError("no layer of this model attends to a sliding window, so no KV cache can be windowed")
    return found


def numbered(spec: Model, windows: Mapping[str, int]) -> dict[str, int]:
    """N of `past_key_values.N` -> window."""
    names = cache_names(spec)
    return {names[path, "k"].split(".")[0]: window for path, window in windows.items()}


def _length(which: str, path: str, windows: Mapping[str, int]) -> str:
    """The symbol of a cache's length; a windowed cache's is another, because its buffer is."""
    return f"{which}_{'sliding' if path in windows else 'sequence'}_length"


def _finished(
    ops: FunctionOps,
    weights: Initializers,
    storage: dict[str, Storage],
    spec: Model,
    given: list[ir.Value],
    values: list[ir.Value],
    cache: str | None,
    defaults: Sequence[Any] = (),
) -> BuiltGraph:
    """Assemble the model from the traced nodes. `defaults`: inputs with a default value."""
    graph = ir.Graph(
        given,
        values,
        nodes=ops.nodes,
        initializers=[*weights.values.values(), *(t.value for t in defaults)],
        opset_imports={"": OPSET, DOMAIN: 1, CONTRIB: 1},
        name=spec.kind,
    )
    model = ir.Model(
        graph, ir_version=IR_VERSION, producer_name="edgeformer", functions=[f for f, _ in ops.functions.values()]
    )
    _clean(model)
    used = {v.name for v in model.graph.initializers.values()}
    codes = {n: found for n, forms in weights.codes.items() if (found := [c for c in forms if c in used])}
    return BuiltGraph(
        model,
        [n for n in storage if n in used or n in codes],
        codes,
        {n: a for n, a in weights.constants.items() if n in used},
        ops.notes,
        cache,
    )


def _encoder(ops: FunctionOps, weights: Initializers, spec: EncoderDecoder) -> tuple[list[ir.Value], list[ir.Value]]:
    """Inputs and outputs of an encoder graph."""
    shape = ("batch_size", "encoder_sequence_length")
    ids, mask = (_input(ops, name, INT64, shape) for name in ("input_ids", "attention_mask"))
    _tables(ops, weights, spec, spec.context)
    root = GraphHandle(ops, spec, 0, weights)
    new = ops.node("Shape", [ids], dims=(1,), dtype=INT64, start=1, end=2)
    memory = ops.enter(root, spec.encode, ids, mask, new)
    return [ids.value, mask.value], [_output(ops, memory, "last_hidden_state", (*shape, spec.width))]


def read_names(spec: Model) -> dict[tuple[str, str], tuple[str, int, int]]:
    """(layer path, tensor) -> `N.encoder.key`, heads, dim of an encoder–decoder model's cross-attention cache."""
    paths = [(path, layer.once()) for path, layer, _ in layers(spec) if layer.once()]
    return {
        (path, name): (f"{i}.encoder.{CACHE_NAMES.get(name, name)}", *size)
        for i, (path, sizes) in enumerate(paths)
        for name, size in sizes.items()
    }


def _clean(model: ir.Model) -> None:
    """Remove unused nodes, common subexpressions, unused `position_ids` and imports of unused domains."""
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    for value in list(model.graph.inputs):  # a lowering may compute positions itself
        if value.name == "position_ids" and not value.uses():
            model.graph.inputs.remove(value)
    for function in model.functions.values():
        passes_used = {node.domain for node in function.all_nodes()}
        for domain in set(function.opset_imports) - passes_used - {""}:
            del function.opset_imports[domain]
    domains = {node.domain for graph in (model.graph, *model.functions.values()) for node in graph.all_nodes()}
    for domain in set(model.graph.opset_imports) - domains - {""}:
        del model.graph.opset_imports[domain]


def _input(ops: FunctionOps, name: str, dtype: ir.DataType, shape: tuple[str | int, ...]) -> GraphTensor:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    return GraphTensor(ops, value, dtype, tuple(d if isinstance(d, int) else None for d in shape))


def _output(ops: FunctionOps, tensor: GraphTensor, name: str, shape: tuple, dtype: ir.DataType = FLOAT) -> ir.Value:
    """A graph output of the given dtype; logits and hidden states are float32 at every precision."""
    tensor = ops.cast_to(tensor, dtype)
    tensor.value.name = name
    tensor.value.type, tensor.value.shape = ir.TensorType(dtype), ir.Shape(shape)
    return tensor.value


def _cache_sizes(spec: Model) -> dict[tuple[str, str], tuple[int, int]]:
    return {(path, name): size for path, layer, _ in layers(spec) for name, size in layer.cache().items()}


_TABLE = 2**25
"""Elements of a RoPE table that are always allowed, however small the model: 128 MB."""


def _tables(ops: FunctionOps, weights: Initializers, spec: Model, context: int) -> None:
    """Add cos and sin tables of every RoPE layer whose angles don't depend on the sequence length."""
    largest = max(2 * sum(math.prod(shape) for shape in tensors(spec).values()), _TABLE)
    for i, rope in enumerate(dict.fromkeys(n for _, n, _ in layers(spec) if isinstance(n, Rope))):
        if context * rope.dim > largest:
            raise ExportError(
                f"RoPE tables for {context:,} positions would exceed twice the model's size; use a smaller --context N"
            )
        if (table := rope.table(context)) is not None:
            dtype = ops.compute.numpy()
            cos, sin = (
                weights.constant(f"rotary.{i}.{n}", a.astype(dtype)) for n, a in zip(("cos", "sin"), table, strict=True)
            )
            ops.tables[rope] = cos, sin
