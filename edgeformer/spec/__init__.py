"""The architecture spec: a tree of frozen dataclasses, and the declarations of layers.

A *node* is data (`Mask`, a RoPE scaling rule); a *layer* is a node that also owns parameters and computes. A variant is
a type, never a flag. The tree is its own serialisation: `to_json(node)` is `{"kind": ..., field: ...}` and `kind` is the
name of the file in `edgeformer/layers/` (or of an entry point in the group `edgeformer.layers`) that defines it.

A layer declares its parameters (`params`), the tensors it caches per token (`cache`) or per sequence (`once`), and its
computation (`apply`) in the op vocabulary of `edgeformer.ops`. It never looks inside a declaration: the back end decides what a
`Linear` becomes (a torch module, an ONNX MatMul, packed 4-bit codes).
"""

from edgeformer.spec.declarations import (
    Const,
    Declaration,
    Dropout,
    Fold,
    Leaf,
    Linear,
    SharedKV,
    Stacked,
    Sub,
    Table,
    Vector,
)
from edgeformer.spec.nodes import Init, Input, Layer, Model, Node, Norm, Position
from edgeformer.spec.sizes import Sizes, resized_ffn, whole
from edgeformer.spec.walks import check, children, layers, leaves, passes, tensor_name, tensors

__all__ = [
    "Const",
    "Declaration",
    "Dropout",
    "Fold",
    "Init",
    "Input",
    "Layer",
    "Leaf",
    "Linear",
    "Model",
    "Node",
    "Norm",
    "Position",
    "SharedKV",
    "Sizes",
    "Stacked",
    "Sub",
    "Table",
    "Vector",
    "check",
    "children",
    "layers",
    "leaves",
    "passes",
    "resized_ffn",
    "tensor_name",
    "tensors",
    "whole",
]
