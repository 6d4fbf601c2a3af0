"""Fused ops as composites: private graphs with a declared name, whose body is the op's definition.

A composite is to Core AI what a function is to ONNX: a compiler that has a kernel for the name may use it, any other runs the
body. Apple's names (`rms_norm`, `rope`, `scaled_dot_product_attention`) have the operands and attributes that coreai-torch
gives them; all others are edgeformer's own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgeformer.exporters.coreai.graph_ops import CoreAiOps
from edgeformer.exporters.coreai.package import c, ir
from edgeformer.exporters.coreai.values import END, CoreTensor, Part, cut, ints, reshaped, scalar, tensor
from edgeformer.ops import Ops
from edgeformer.ops.tensor import MaskRule

Attributes = Mapping[str, bool | int | float]


class CompositeOps(CoreAiOps):
    """The fused ops that Core AI has names for, one composite per signature.

    module: the MLIR module that the composites are added to.
    """

    def __init__(self, module: Any):
        self.module, self.made = module, {}

    def composite(
        self, name: str, inputs: Mapping[str, CoreTensor], attributes: Attributes, body: Callable[..., CoreTensor]
    ) -> CoreTensor:
        """Call the composite `name`. body: its definition, on values that stand for `inputs`, in their order."""
        key = name, tuple(attributes.items()), tuple(str(x.value.type) for x in inputs.values())
        if key not in self.made:
            self.made[key] = self._define(f"{name}_{len(self.made)}", name, inputs, attributes, body)
        return tensor(self.made[key](*(x.value for x in inputs.values()))[0])

    def _define(self, symbol: str, name: str, inputs, attributes, body) -> Any:
        names = ", ".join(f'"{n}"' for n in inputs)
        given = ", ".join(f"{key} = {_attribute(value)}" for key, value in {**attributes, "version": 1}.items())
        declared = f'"{name}" = {{input_names = [{names}], op_attrs = {{{given}}}, output_names = ["output"]}}'
        with ir().InsertionPoint.at_block_begin(self.module._body):
            graph = c().GraphOp(
                symbol,
                [x.value.type for x in inputs.values()],
                [],
                list(inputs),
                private=True,
                no_inline=True,
                composite_decl=ir().Attribute.parse(f"#coreai.composite_declaration<{declared}>"),
            )
            with graph.block:
                output = body(*map(tensor, graph.arguments))
                graph.set_outputs_spec_from_dict(OrderedDict(output=output.value))
        return graph

    def rms_norm(self, x, weight, *, eps):
        def body(x: CoreTensor, weight: CoreTensor) -> CoreTensor:
            return Ops.rms_norm(self, x, weight, eps=eps)

        return self.composite("rms_norm", {"input": x, "scale": weight}, {"axes": -1, "eps": eps}, body)

    def add_rms_norm(self, x, d, weight, *, eps):
        total = x + d
        return total, self.rms_norm(total, weight, eps=eps)

    def rotate(self, x, cos, sin, *, dim, rotated, interleaved=False):
        def body(x: CoreTensor, cos: CoreTensor, sin: CoreTensor) -> CoreTensor:
            return Ops.rotate(self, x, cos, sin, dim=dim, rotated=rotated, interleaved=interleaved)

        if rotated < dim:  # Apple's own exporter avoids the composite here: its lowering of partial rotations was wrong
            return body(x, cos, sin)
        given = {"scale": 1.0, "base": 1e4, "dims": rotated, "interleaved": interleaved}
        return self.composite("rope", {"input": x, "cos": cos, "sin": sin}, given, body)

    def mask(self, spec, queries, keys, valid, prefix=None):
        """The rule itself where the attention composite can say it; else a tensor."""
        simple = spec.causal and spec.chunk is None and not spec.prefix and valid is None
        return spec if simple else super().mask(spec, queries, keys, valid, prefix)

    def attention(self, q, k, v, mask, bias, *, groups, scale, softcap=None, sinks=None, dropout=None):
        rest: dict[str, Any] = {"groups": groups, "scale": scale, "softcap": softcap, "sinks": sinks}
        rule = None if mask is None or isinstance(mask, CoreTensor) else mask
        if rule is None or bias is not None or softcap is not None or sinks is not None:
            return super().attention(q, k, v, mask if rule is None else self._lower_right(rule, q, k), bias, **rest)

        def body(q: CoreTensor, k: CoreTensor, v: CoreTensor) -> CoreTensor:
            return Ops.attention(self, q, k, v, self._lower_right(rule, q, k), None, **rest)

        given = {"scale": float(scale), "is_causal": True, "window_size": rule.window or 0}
        return self.composite("scaled_dot_product_attention", {"query": q, "key": k, "value": v}, given, body)

    def additive_mask(self, mask, scores):
        if mask is None or isinstance(mask, CoreTensor):
            return mask
        return self._by_sizes(mask, self.shape(scores, 2), self.shape(scores, 3))

    def _lower_right(self, rule: MaskRule, q: CoreTensor, k: CoreTensor) -> CoreTensor | None:
        """The mask of the last queries: those of `q` stand at the end of the keys."""
        return self._by_sizes(rule, self.shape(q, 2), self.shape(k, 2))

    def _by_sizes(self, rule: MaskRule, new: Part, all_: Part) -> CoreTensor | None:
        if isinstance(all_, int):
            keys = ints(*range(all_))
        else:
            whole = c().reshape(all_.value, c().constant(np.zeros(0, np.int32)))
            keys = c().range_(scalar(0), whole, scalar(1))
        first: Part
        if isinstance(all_, int) and isinstance(new, int):
            first = all_ - new
        else:  # a slice of the range: a sum of a range and a difference of sizes fails at run time
            first = (all_ if isinstance(all_, CoreTensor) else tensor(ints(all_))) - new
        queries = cut(keys, [first], [END])
        return Ops.mask(self, rule, reshaped(queries, [1, -1]), reshaped(keys, [1, -1]), None)


def _attribute(value: bool | int | float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value} : si64" if isinstance(value, int) else f"{value:e} : f32"
