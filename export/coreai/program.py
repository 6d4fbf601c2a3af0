"""A spec as the functions of a Core AI asset."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from edgeformer.exporters.coreai.composites import CompositeOps
from edgeformer.exporters.coreai.constants import Constants
from edgeformer.exporters.coreai.handles import CoreAiHandle
from edgeformer.exporters.coreai.package import authoring, c, ir
from edgeformer.exporters.coreai.store import StateStore, states
from edgeformer.exporters.coreai.values import END, CoreTensor, cut, reshaped, tensor
from edgeformer.exporters.onnx.storage import StoragePlan
from edgeformer.ops.step import Step, begin
from edgeformer.spec import Model
from edgeformer.spec.task import Task

MAIN = "main"


def write(spec: Model, plan: StoragePlan, path: Path) -> None:
    """Write a decoder or encoder as `path`, a folder `NAME.aimodel`."""
    module = authoring().Module.create()
    half = plan.compute == onnx_ir.DataType.FLOAT16
    constants = Constants(plan, np.float16 if half else np.float32)
    with module:  # Core AI's passes run when the block is left
        if spec.task == Task.TEXT_GENERATION:
            _decoder(module, spec, constants)
        else:
            _encoder(module, spec, constants)
    authoring().AIProgram(module).save_asset(path)


def _decoder(module: Any, spec: Model, constants: Constants) -> None:
    """`main`: input_ids [1, T], position_ids [1, S] of past and new tokens, the caches as states -> logits [1, T, V].

    That is what Apple's runner of language models asks for. A prefix LM has a third input, prefix_length [1].
    """
    held = states(spec)
    element = (ir().F16Type if constants.dtype == np.float16 else ir().F32Type).get()
    dynamic, integer = ir().ShapedType.get_dynamic_size(), ir().IntegerType.get_signed(32)
    ids = ir().RankedTensorType.get([1, dynamic], integer)
    inputs = {"input_ids": ids, "position_ids": ids}
    if spec.prefixed:
        inputs["prefix_length"] = ir().RankedTensorType.get([1], integer)
    handles = {
        s.public: c().HandleType.get(ir().RankedTensorType.get([len(s.paths), 1, s.heads, dynamic, s.dim], element))
        for s in held
    }
    graph = c().GraphOp(MAIN, [*inputs.values(), *handles.values()], [], [*inputs, *handles])
    with graph.block:
        ops, arguments = CompositeOps(module), list(graph.arguments)
        given = {name: tensor(x) for name, x in zip(inputs, arguments, strict=False)}
        new, positions = given["input_ids"], given["position_ids"]
        end, count = ops.shape(positions, 1), ops.shape(new, 1)
        assert isinstance(end, CoreTensor) and isinstance(count, CoreTensor)
        past = end - count
        store = StateStore(list(zip(held, arguments[len(inputs) :], strict=True)), past, end)
        queries = reshaped(cut(positions.value, [0, past], [END, END]), [1, -1])
        prefix = given.get("prefix_length")
        step = Step(ops, queries, positions, queries, store=store, prefix=prefix)
        root = CoreAiHandle(ops, spec, 0, constants)
        logits = root({"input_ids": new}, step)["logits"]
        logits = ops.cast_to(logits, constants.dtype)
        graph.set_outputs_spec_from_dict(OrderedDict(**store.tokens, logits=logits.value))
        _mark_states(graph, len(inputs), list(handles))


def _mark_states(graph: Any, first: int, names: list[str]) -> None:
    """Say which outputs are the states' new contents."""
    given = [{a.name: a.attr for a in attributes} for attributes in graph.arg_attrs]
    for attributes, name in zip(given[first:], names, strict=True):
        attributes["MutableBuffers.buffer_mutation"] = ir().StringAttr.get(name)
    graph.arg_attrs = ir().ArrayAttr.get([ir().DictAttr.get(attributes) for attributes in given])


def _encoder(module: Any, spec: Model, constants: Constants) -> None:
    """`main`: input_ids, attention_mask and, with several token types, token_type_ids, [B, T] -> the spec's outputs."""
    dynamic = ir().ShapedType.get_dynamic_size()
    kind = ir().RankedTensorType.get([dynamic, dynamic], ir().IntegerType.get_signed(32))
    names = [i.name for i in spec.inputs()]
    graph = c().GraphOp(MAIN, [kind] * len(names), [], names)
    with graph.block:
        ops = CompositeOps(module)
        inputs = {name: tensor(x) for name, x in zip(names, graph.arguments, strict=True)}
        step = begin(ops, inputs["attention_mask"], new=0, slots=spec.counts_padding)
        made = CoreAiHandle(ops, spec, 0, constants)(inputs, step)
        outputs = OrderedDict((name, ops.cast_to(x, constants.dtype).value) for name, x in made.items())
        graph.set_outputs_spec_from_dict(outputs)
