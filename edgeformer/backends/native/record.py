"""A spec's layers as handles that record instructions, and `record`, which runs them once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from edgeformer.backends.native.ops import NativeOps
from edgeformer.backends.native.program import Constant, Op, Part, Program
from edgeformer.backends.native.values import (
    FirstRow,
    NotCovered,
    Positions,
    RealTokens,
    TokenIds,
    TokenTypes,
    Value,
    Vector,
)
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.spec import Const, Dropout, Layer, Linear, Model, Stacked, Sub, Table, tensor_name
from edgeformer.spec import Vector as VectorDeclaration
from edgeformer.spec.task import Task


class LinearHandle:
    """A linear map of the recorded model."""

    def __init__(self, ops: NativeOps, part: Part):
        self.ops, self.part = ops, part

    def __call__(self, x: Value) -> Value:
        y = self.ops.like(x, self.part.outputs)
        self.ops.record(Op.LINEAR, y, x, parts=(self.part,))
        return y


class TableHandle:
    """An embedding table: rows by id or position, or a tied head."""

    def __init__(self, ops: NativeOps, part: Part):
        self.ops, self.part = ops, part

    def __call__(self, ids: Positions | TokenIds | TokenTypes | FirstRow) -> Value | Vector:
        return self.ops.lookup(self.part, ids)

    def as_linear(self, x: Value) -> Value:
        """[B, T, width] -> [B, T, rows]."""
        return LinearHandle(self.ops, self.part)(x)


class StackedHandle:
    """Maps stacked in one tensor: experts, or one per head."""

    def __init__(self, ops: NativeOps, part: Part, count: int):
        self.ops, self.part, self.count = ops, part, count

    def each(self, x: Value) -> Value:
        """[B, count, T, inputs] -> [B, count, T, outputs]."""
        return self.ops.maps(self.part, self.count, x)


class Handle(LayerHandle):
    """A layer of the recorded model."""

    def __init__(self, ops: NativeOps, layer: Layer, width: int, path: str = ""):
        self.ops, self.layer, self.path = ops, layer, path
        self.hold(width, self._make)

    def _make(self, declaration: Any, path: str) -> Any:
        weight = tensor_name(path, "weight")
        match declaration:
            case Linear():
                bias = tensor_name(path, "bias") if declaration.bias else None
                return LinearHandle(self.ops, Part(weight, declaration.inputs, declaration.outputs, bias))
            case Stacked():
                return StackedHandle(self.ops, Part(weight, declaration.inputs, declaration.outputs), declaration.count)
            case Table():
                return TableHandle(self.ops, Part(weight, declaration.width, declaration.rows))
            case VectorDeclaration():
                return Vector(Constant((path,)), declaration.size)
            case Const():
                return declaration.make()
            case Dropout():
                return lambda x: x
            case Sub():
                return Handle(self.ops, declaration.layer, declaration.width, path)
        raise TypeError(declaration)


class _Cached:
    """The caches of layers that fill them by themselves; `attend` doesn't ask."""

    def __init__(self, ops: NativeOps):
        self.ops = ops

    def append(self, path: str, tensors: dict[str, Any]) -> tuple[Any, ...]:
        return self.ops.cached(path, tensors)

    def once(self, path: str, make: Callable[[], dict[str, Any]]) -> NoReturn:
        raise NotCovered(f"{path} attends to an encoder, which the native back end doesn't cover")


def record(spec: Model, capacity: int) -> Program:
    """The instructions of a decoder, or of an encoder, for sequences of up to `capacity` tokens.

    Raises:
        NotCovered: a layer uses something that the engine has no instruction for; the message names both.
    """
    if spec.task not in (Task.TEXT_GENERATION, Task.FEATURE_EXTRACTION):
        raise NotCovered("the native back end runs decoders and encoders only")
    ops = NativeOps(spec, capacity)
    new: Any = Positions()
    step = Step(ops, new, new, new, store=_Cached(ops) if ops.remembers else None, keep=1, prefix=new)
    root = Handle(ops, spec, 0)
    inputs: dict[str, Any] = {"input_ids": TokenIds(), "attention_mask": RealTokens(), "token_type_ids": TokenTypes()}
    made = ops.enter(root, spec.apply, inputs, step)
    if not ops.remembers:
        for name, value in made.items():
            ops.out(name, value)
        return ops.program
    logits, code = made["logits"], ops.program.code
    if code[-1].dst != logits.buffer:
        raise NotCovered("the native back end can't return values that were computed before others")
    code[-1] = replace(code[-1], dst=None)  # straight into the caller's array
    return ops.program
