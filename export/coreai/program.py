"""A spec as the functions of a Core AI asset."""

from __future__ import annotations

import functools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from edgeformer.errors import ExportError
from edgeformer.exporters.coreai.composites import CompositeOps
from edgeformer.exporters.coreai.constants import Constants
from edgeformer.exporters.coreai.handles import CoreAiHandle
from edgeformer.exporters.coreai.package import authoring, c, ir, save
from edgeformer.exporters.coreai.store import DECODE, ENCODE, MAIN, StateStore, read_names, states
from edgeformer.exporters.coreai.values import END, CoreTensor, cut, reshaped, tensor
from edgeformer.exporters.onnx.filling import Progress
from edgeformer.exporters.onnx.storage import StoragePlan
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.ops.step import Step, begin
from edgeformer.spec import Model
from edgeformer.spec.task import Task


def write(spec: Model, plan: StoragePlan, path: Path, progress: Progress | None = None) -> int:
    """Write a model as `path`, a folder `NAME.aimodel`; returns the bytes of its weights.

    Raises:
        ExportError: Core AI's compiler refuses the model.
        OSError: there is no space for the file.
    """
    module = authoring().Module.create()
    half = plan.compute == onnx_ir.DataType.FLOAT16
    constants = Constants(plan, np.float16 if half else np.float32, progress)
    ops = CompositeOps(module)
    try:
        with module:
            if isinstance(spec, EncoderDecoder):
                _encode(ops, spec, constants)
                constants.another_function()
                _decoder(ops, spec, constants, DECODE)
            elif spec.task == Task.TEXT_GENERATION:
                _decoder(ops, spec, constants, MAIN)
            else:
                _encoder(ops, spec, constants)
    except RuntimeError as e:  # the passes run when the block is left
        first = str(e).splitlines()[0].rsplit(">>: ", 1)[-1]
        raise ExportError(f"Core AI's compiler refuses this {spec.kind}: {first[:300]}") from e
    save(module, path, constants.bytes)
    return constants.bytes


def _decoder(ops: CompositeOps, spec: Model, constants: Constants, function: str) -> None:
    """input_ids [1, T], position_ids [1, S] of past and new tokens, the caches as states -> logits [1, T, V].

    That is what Apple's runner of language models asks of `main`. A prefix LM has a third input, prefix_length [1]; an
    encoder–decoder model's `decode` also has `encode`'s outputs as inputs.
    """
    held, read = states(spec), read_names(spec)
    element = (ir().F16Type if constants.dtype == np.float16 else ir().F32Type).get()
    dynamic, integer = ir().ShapedType.get_dynamic_size(), ir().IntegerType.get_signed(32)
    ids = ir().RankedTensorType.get([1, dynamic], integer)
    inputs = {"input_ids": ids, "position_ids": ids}
    if spec.prefixed:
        inputs["prefix_length"] = ir().RankedTensorType.get([1], integer)
    for name, heads, dim in read.values():
        inputs[name] = ir().RankedTensorType.get([1, heads, dynamic, dim], element)
    handles = {
        s.public: c().HandleType.get(ir().RankedTensorType.get([len(s.paths), 1, s.heads, dynamic, s.dim], element))
        for s in held
    }
    graph = c().GraphOp(function, [*inputs.values(), *handles.values()], [], [*inputs, *handles])
    with graph.block:
        arguments = list(graph.arguments)
        given = {name: tensor(x) for name, x in zip(inputs, arguments, strict=False)}
        new, positions = given["input_ids"], given["position_ids"]
        end, count = ops.shape(positions, 1), ops.shape(new, 1)
        assert isinstance(end, CoreTensor) and isinstance(count, CoreTensor)
        past = end - count
        remembered = {key: given[name] for key, (name, *_) in read.items()}
        store = StateStore(list(zip(held, arguments[len(inputs) :], strict=True)), past, end, remembered)
        queries = reshaped(cut(positions.value, [0, past], [END, END]), [1, -1])
        step = Step(ops, queries, positions, queries, store=store, prefix=given.get("prefix_length"))
        logits = CoreAiHandle(ops, spec, 0, constants)({"input_ids": new}, step)["logits"]
        logits = ops.cast_to(logits, constants.dtype)
        graph.set_outputs_spec_from_dict(OrderedDict(**store.tokens, logits=logits.value))
        _mark_states(graph, len(inputs), list(handles))


def _encode(ops: CompositeOps, spec: EncoderDecoder, constants: Constants) -> None:
    """`encode`: input_ids [1, M] -> each decoder layer's keys and values of the text that was read, [1, heads, M, dim]."""
    ids = ir().RankedTensorType.get([1, ir().ShapedType.get_dynamic_size()], ir().IntegerType.get_signed(32))
    graph = c().GraphOp(ENCODE, [ids], [], ["input_ids"])
    with graph.block:
        read = tensor(graph.arguments[0])
        root = CoreAiHandle(ops, spec, 0, constants)
        memory = ops.enter(root, spec.encode, read, read * 0 + 1, 0)
        outputs, made = OrderedDict(), {}
        for (path, name), (public, *_) in read_names(spec).items():
            if path not in made:
                made[path] = functools.reduce(_child, path.split("."), root).remember(memory)
            outputs[public] = ops.cast_to(made[path][name], constants.dtype).value
        graph.set_outputs_spec_from_dict(outputs)


def _child(handle: Any, name: str) -> Any:
    return handle[int(name)] if name.isdigit() else getattr(handle, name)


def _mark_states(graph: Any, first: int, names: list[str]) -> None:
    """Say which outputs are the states' new contents."""
    given = [{a.name: a.attr for a in attributes} for attributes in graph.arg_attrs]
    for attributes, name in zip(given[first:], names, strict=True):
        attributes["MutableBuffers.buffer_mutation"] = ir().StringAttr.get(name)
    graph.arg_attrs = ir().ArrayAttr.get([ir().DictAttr.get(attributes) for attributes in given])


def _encoder(ops: CompositeOps, spec: Model, constants: Constants) -> None:
    """`main`: input_ids, attention_mask and, with several token types, token_type_ids, [B, T] -> the spec's outputs."""
    dynamic = ir().ShapedType.get_dynamic_size()
    kind = ir().RankedTensorType.get([dynamic, dynamic], ir().IntegerType.get_signed(32))
    names = [i.name for i in spec.inputs()]
    graph = c().GraphOp(MAIN, [kind] * len(names), [], names)
    with graph.block:
        inputs = {name: tensor(x) for name, x in zip(names, graph.arguments, strict=True)}
        step = begin(ops, inputs["attention_mask"], new=0, slots=spec.counts_padding)
        made = CoreAiHandle(ops, spec, 0, constants)(inputs, step)
        outputs = OrderedDict((name, ops.cast_to(x, constants.dtype).value) for name, x in made.items())
        graph.set_outputs_spec_from_dict(outputs)
