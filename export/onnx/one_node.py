"""The whole model as one node: `edgeformer::Decoder` or `edgeformer::Encoder`, an ONNX function whose body is the graph.

Every runtime can inline the function. With edgeformer's native library registered, ONNX Runtime calls the library once per step
instead (`backends/native/src/ort_decoder.h`, `ort_encoder.h`). The node's attribute `program` tells the kernel what to compute,
and which of the node's inputs hold the weights; the function doesn't use it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeformer.backends.native.layout import Fill, Layout, lay_out
from edgeformer.backends.native.program import Constant, Kind, Program
from edgeformer.backends.native.record import record
from edgeformer.backends.native.values import NotCovered
from edgeformer.backends.numpy import NumpyOps
from edgeformer.exporters.onnx.graph import LOGITS_TO_KEEP, BuiltGraph, CacheScales, cache_names
from edgeformer.exporters.onnx.graph_ops import DOMAIN, FLOAT
from edgeformer.exporters.onnx.handles import BLOCKS
from edgeformer.exporters.onnx.storage import StoragePlan
from edgeformer.layers.rope import Rope
from edgeformer.spec import Model
from edgeformer.spec.task import Task
from edgeformer.weights.formats import SCALES, Format

PROGRAM = "program"
_MAGIC, _VERSION = 0x4D504645, 4
_MAX_DIM, _MAX_ANGLES = 640, 2**20
_FLOATS = {ir.DataType.FLOAT: Kind.FP32, ir.DataType.FLOAT16: Kind.FP16, ir.DataType.BFLOAT16: Kind.BF16}


@dataclass(frozen=True)
class _Names:
    """The node's inputs and outputs by name."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    def input(self, name: str) -> int:
        """The number of an input; -1 if there is none of that name."""
        return self.inputs.get(name, -1)

    def weight(self, name: str) -> int:
        """The number of an input that must be there."""
        return self.inputs[name]

    def codes(self, name: str) -> int:
        """The number of a quantized weight's codes, in whichever shape the graph declares them."""
        return self.inputs[name] if name in self.inputs else self.inputs[name + BLOCKS]


def as_one_node(
    built: BuiltGraph, spec: Model, plan: StoragePlan, levels: Mapping[int, int], scales: CacheScales | None = None
) -> str | None:
    """Put the graph into a function and call it; returns why not, if the native library has no kernel for the model.

    Args:
        built: the graph; it is changed.
        spec: its model.
        plan: how its weights are stored.
        levels: bits of a quantized weight -> the accuracy level of its products in the graph; at level 4 the kernel rounds
            activations to int8, too.
        scales: of an int8 KV cache.
    """
    program = covered(spec)
    if isinstance(program, str):
        return program
    tables = {name: _initializer_of(table, built) for name, table in program.tables.items()}
    parts = {p.weight for i in program.code for p in i.parts}
    kinds = {name: Kind.FP32 if name in tables else _kind(plan.storage[name], levels) for name in parts}
    try:
        layout = lay_out(program, kinds, scales)
    except NotCovered as e:
        return str(e)
    encodes, half = spec.task == Task.FEATURE_EXTRACTION, plan.compute != FLOAT
    node = _wrap(built.model, "Encoder" if encodes else "DecoderI8" if scales else "DecoderF16" if half else "Decoder")
    inputs = {v.name or "": n for n, v in enumerate(node.inputs) if v is not None}
    inputs |= {name: inputs[initializer] for name, initializer in tables.items()}
    names = _Names(inputs, {v.name or "": n for n, v in enumerate(node.outputs)})
    words = _program(layout, spec, plan, names)
    node.attributes[PROGRAM] = ir.AttrTensor(PROGRAM, ir.tensor(np.frombuffer(words, np.uint8), name=PROGRAM))
    return None


def covered(spec: Model) -> Program | str:
    """The program of a decoder or encoder that can be one node, or why it can't."""
    try:
        program = record(spec, spec.context)
    except NotCovered as e:
        return str(e)
    if any(rotation.layer.frequencies().size > _MAX_ANGLES for rotation in program.rotations):
        return f"its RoPE has more than {_MAX_ANGLES:,} frequencies"
    if any(max(cache.dim, cache.value_dim) > _MAX_DIM for cache in program.caches):
        return f"its heads have more than {_MAX_DIM} channels"
    return program


def _initializer_of(table: np.ndarray, built: BuiltGraph) -> str:
    """The name of the initializer that holds a computed table in float32; a new one, where the graph has another form."""
    found = (name for name, array in built.constants.items() if array.dtype == np.float32)
    if (name := next((n for n in found if np.array_equal(built.constants[n], table)), None)) is not None:
        return name
    name = f"decoder.table.{len(built.constants)}"
    built.constants[name] = table.astype(np.float32)
    value = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(table.shape))
    built.model.graph.initializers[name] = value
    return name


def _kind(storage: ir.DataType | Format, levels: Mapping[int, int]) -> Kind:
    if isinstance(storage, Format):
        return Kind[storage.name.upper() + ("" if levels[storage.bits] >= 4 else "_EXACT")]
    return _FLOATS[storage]


def _wrap(model: ir.Model, name: str) -> ir.Node:
    """Move the graph's nodes into a function of the inputs and initializers; the graph keeps one node, which calls it."""
    graph = model.graph
    _without_overloads(model)
    given = [*graph.inputs, *(v for v in graph.initializers.values() if v.name != LOGITS_TO_KEEP)]
    formals = [ir.Value(name=v.name, type=v.type, shape=v.shape) for v in given]
    results = list(graph.outputs)
    nodes = list(graph)
    graph.outputs.clear()
    graph.remove(nodes)
    for value, formal in zip(given, formals, strict=True):
        ir.convenience.replace_all_uses_with(value, formal)
    body = ir.Graph(formals, results, nodes=nodes, opset_imports=dict(graph.opset_imports), name=name)
    function = ir.Function(DOMAIN, name, "", graph=body, attributes=[ir.Attr(PROGRAM, ir.AttributeType.TENSOR, None)])
    model.functions[function.identifier()] = function
    call = ir.node(name, given, domain=DOMAIN, num_outputs=len(results), name="decoder")
    graph.append(call)
    for value, result in zip(call.outputs, results, strict=True):
        value.name, value.type, value.shape = result.name, result.type, result.shape
    graph.outputs.extend(call.outputs)
    return call


def _without_overloads(model: ir.Model) -> None:
    """Give every function a name of its own: ONNX Runtime (seen in 1.32) doesn't find overloads that a function calls."""
    functions = list(model.functions.values())
    shared = {name for name, count in Counter(f.name for f in functions).items() if count > 1}
    names = {f.identifier(): f"{f.name}_{f.overload}" if f.name in shared else f.name for f in functions}
    for graph in (model.graph, *functions):
        for node in graph.all_nodes():
            if (name := names.get(node.op_identifier())) is not None:
                node.op_type, node.overload = name, ""
    model.functions.clear()
    for function, name in zip(functions, names.values(), strict=True):
        function.name, function.overload = name, ""
        model.functions[function.identifier()] = function


def _program(layout: Layout, spec: Model, plan: StoragePlan, names: _Names) -> bytes:
    """What `OrtProgram` in `ort_program.cc` reads: little-endian 32-bit words."""
    made = bytearray()

    def words(*numbers: int) -> None:
        made.extend(struct.pack(f"<{len(numbers)}i", *numbers))

    def floats(numbers: np.ndarray) -> None:
        made.extend(np.ascontiguousarray(numbers, "<f4").tobytes())

    instructions = b"".join(bytes(i) for i in layout.instructions)
    words(_MAGIC, _VERSION, len(instructions) // 4 // max(len(layout.instructions), 1), layout.vocab)
    words(len(layout.widths), *layout.widths, len(layout.caches))
    public = cache_names(spec)
    for number, cache in enumerate(layout.caches):
        words(cache.heads, cache.dim, cache.value_dim, cache.latent)
        words(*(layout.scales[number] if layout.scales else (-1, -1)))
        if not cache.path:  # of a model that remembers nothing
            words(-1, -1, -1, -1)
            continue
        tensors = [public[cache.path, name] for name in (("rope", "latent") if cache.latent else ("k", "v"))]
        words(*(names.weight(f"past_key_values.{t}") for t in tensors))
        words(*(names.outputs[f"present.{t}"] for t in tensors))
    given = "input_ids", "attention_mask", "position_ids", "prefix_length", LOGITS_TO_KEEP, "token_type_ids"
    words(*(names.input(n) for n in given), spec.counts_padding)
    words(len(layout.outputs), *(names.outputs[name] for name in layout.outputs))
    words(len(layout.matrices))
    for matrix in layout.matrices:
        words(matrix.kind, matrix.rows, matrix.cols, matrix.tiles, len(matrix.fills))
        for fill in matrix.fills:
            words(*_fill(fill, matrix.kind, names))
    rotated = {number for _, number in layout.rotations}
    words(len(layout.vectors))
    for number, constant in enumerate(layout.vectors):
        pieces = [] if number in rotated else _pieces(constant, plan, names)
        words(len(pieces))
        for piece in pieces:
            if isinstance(piece, np.ndarray):
                words(1, piece.size)
                floats(piece)
            else:
                words(0, *piece)
    words(len(layout.rotations))
    for rotation, number in layout.rotations:
        frequencies, changes = rotation.layer.frequencies(), _changes(rotation.layer, spec.context)
        words(number, rotation.layer.dim)
        floats(np.array([rotation.layer.magnitude()]))
        words(frequencies.size)
        floats(frequencies)
        words(len(changes), *(number for change in changes for number in change))
    words(len(layout.instructions))
    return bytes(made) + instructions


def _changes(rope: Rope, context: int) -> list[tuple[int, int]]:
    """(length of the sequence, row of frequencies from that length on), ascending."""
    if rope.scaling is None or not rope.per_length:
        return [(0, 0)]
    rows = np.asarray(rope.scaling.row(NumpyOps(), np.array(range(context + 1)))).reshape(-1)
    starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 1))
    return [(int(length), int(rows[length])) for length in starts]


def _fill(fill: Fill, kind: Kind, names: _Names) -> tuple[int, ...]:
    weight = fill.part.weight
    inputs = (names.codes(weight), names.weight(weight + SCALES)) if kind.grouped else (names.weight(weight), -1)
    return (*inputs, fill.tile, fill.step, fill.part.outputs, -1 if fill.entry is None else fill.entry)


def _pieces(constant: Constant, plan: StoragePlan, names: _Names) -> Sequence[np.ndarray | tuple[int, int]]:
    """A vector as initializers (input, size) one after the other, or as numbers, where it is computed from them."""
    arrays = [np.asarray(plan.weights[name]) for name in constant.names]
    if constant.make is None:
        return [(names.weight(name), array.size) for name, array in zip(constant.names, arrays, strict=True)]
    stored = [plan.storage[name] for name in constant.names]  # quantized ones are read as they will be
    rounded = [a.astype(d.numpy()) if isinstance(d, ir.DataType) else a for a, d in zip(arrays, stored, strict=True)]
    return [constant.values(rounded).reshape(-1)]
