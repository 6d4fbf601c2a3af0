"""A decoder that takes the encoder's output: the form that Optimum calls decoder_model_merged, and transformers.js loads.

Keys and values of the encoder's output are inputs as well. They are empty in the first step, which computes them and returns
them; later steps compute none, since `use_cache_branch` cuts the encoder's output to no tokens. One graph thus serves both,
without a branch."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

from edgeformer.exporters.onnx.functions import FunctionOps
from edgeformer.exporters.onnx.graph_ops import INT64, GraphTensor
from edgeformer.exporters.onnx.handles import GraphHandle
from edgeformer.layers.encoder_decoder import EncoderDecoder


class Merged:
    """The inputs of such a decoder beyond those of a plain one, and what is computed of them."""

    def __init__(self, ops: FunctionOps, spec: EncoderDecoder):
        shape = ("batch_size", "encoder_sequence_length", spec.width)
        self.hidden = _input(ops, "encoder_hidden_states", ir.DataType.FLOAT, shape)
        self.cached = _input(ops, "use_cache_branch", ir.DataType.BOOL, (1,))

    @property
    def values(self) -> list[ir.Value]:
        """The inputs."""
        return [self.hidden.value, self.cached.value]

    def mask(self, ops: FunctionOps, ids: GraphTensor, past: GraphTensor) -> GraphTensor:
        """int64 [B, past + T] of ones: callers give none, since the decoder's text has no padding."""
        batch, new = ops.shape(ids, 0), ops.shape(ids, 1)
        before = ops.node("Shape", [past], dims=(1,), dtype=INT64, start=2, end=3)
        length = ops.node("Add", [before, new], dims=(1,), dtype=INT64)
        sizes = ops.node("Concat", [batch, length], dims=(2,), dtype=INT64, axis=0)
        return ops.node("Expand", [ops.ints(1), sizes], dims=(None, None), dtype=INT64)

    def kept(self, ops: FunctionOps, past: dict[tuple[str, str], GraphTensor]) -> dict[tuple[str, str], GraphTensor]:
        """The caches; without tokens in a first step, where Optimum gives some of one."""
        size = ops.node("Shape", [next(iter(past.values()))], dims=(1,), dtype=INT64, start=2, end=3)
        length = ops.node("Mul", [size, ops.cast_to(self.cached, INT64)], dims=(1,), dtype=INT64)
        return {key: ops.node("Slice", [x, ops.ints(0), length, ops.ints(2)], dims=x.dims) for key, x in past.items()}

    def remembered(
        self, ops: FunctionOps, root: GraphHandle, past: dict[tuple[str, str], GraphTensor]
    ) -> dict[tuple[str, str], GraphTensor]:
        """Keys and values of the encoder's output: those of the past, and in a first step those of `hidden`."""
        first = ops.node("Not", [self.cached], dims=(1,))
        size = ops.node("Shape", [self.hidden], dims=(1,), dtype=INT64, start=1, end=2)
        length = ops.node("Mul", [size, ops.cast_to(first, INT64)], dims=(1,), dtype=INT64)
        tokens = ops.node("Slice", [self.hidden, ops.ints(0), length, ops.ints(1)], dims=self.hidden.dims)
        memory = ops.cast_to(tokens, ops.compute)
        made: dict[str, dict[str, GraphTensor]] = {}
        for path, _ in past:
            if path not in made:
                made[path] = functools.reduce(_child, path.split("."), root).remember(memory)
        return {(path, name): ops.concat([x, made[path][name]], 2) for (path, name), x in self.kept(ops, past).items()}


def by_layer(caches: Iterable[ir.Value]) -> list[ir.Value]:
    """Values named `past_key_values.N.decoder.key` and the like, layer by layer: Optimum assigns them by their order."""
    return sorted(caches, key=lambda v: (int((v.name or "").split(".")[1]), ".encoder." in (v.name or "")))


def _child(handle: Any, name: str) -> Any:
    """A handle's child by its name or number."""
    return handle[int(name)] if name.isdigit() else getattr(handle, name)


def _input(ops: FunctionOps, name: str, dtype: ir.DataType, shape: tuple[str | int, ...]) -> GraphTensor:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    return GraphTensor(ops, value, dtype, tuple(d if isinstance(d, int) else None for d in shape))
