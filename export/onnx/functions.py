"""Fused ops as nodes of the domain `edgeformer`, each defined by an ONNX function in the model.

A runtime without edgeformer's kernels inlines the function; one with a kernel of the same name runs the kernel (ONNX Runtime:
docs/decisions/0004-fused-ops-are-functions.md). A registered kernel replaces *every* overload of its name and
sees only attributes and tensors, so operand formats and arity are part of the op's name, and attributes are also written
on the node. Function bodies are traced with plain Python values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from edgeformer.exporters.onnx.graph_ops import CONTRIB, DOMAIN, FLOAT, OPSET, GraphOps, GraphTensor
from edgeformer.exporters.onnx.handles import LinearHandle, StackedHandle

PAIR = ("encoder_model", "decoder_model_merged")
"""Optimum's names of the graphs of an encoder–decoder model."""
_TYPES = {str: ir.AttributeType.STRING, float: ir.AttributeType.FLOAT, int: ir.AttributeType.INT}


class FunctionOps(GraphOps):
    """Primitives as nodes, fused ops as function calls; with `inline`, fused ops are written as their bodies."""

    writes_functions: ClassVar[bool] = True
    """Whether fused ops become functions; False inlines their bodies, for targets whose runtimes don't support functions."""
    one_node: ClassVar[bool] = False
    """Whether a decoder's graph becomes one function, for which edgeformer's native library has a kernel."""
    windowed_caches: ClassVar[bool] = False
    """Whether the KV cache of a layer with a sliding window can hold the window only."""
    precisions: ClassVar[tuple[str, ...] | None] = None
    """The precisions that the target supports; None: all."""
    model_types: ClassVar[frozenset[str] | None] = None
    """The model types that the folder's reader knows, where it reads config.json; the folder then has to have one."""

    @classmethod
    def files(cls, precision: str) -> tuple[str, str]:
        """The ONNX file's path in the artefact, and the name of the data file beside it."""
        return "model.onnx", "model.onnx.data"

    @classmethod
    def pair_files(cls, precision: str) -> tuple[tuple[str, str], tuple[str, str]]:
        """`files` of an encoder–decoder model's encoder, and of its decoder, under Optimum's names."""
        encoder, decoder = ((f"{name}.onnx", f"{name}.onnx.data") for name in PAIR)
        return encoder, decoder

    @classmethod
    def config(cls, config: dict[str, Any], precisions: list[str], *, pair: bool = False) -> dict[str, Any]:
        """The content of config.json for this target. pair: of an encoder–decoder model."""
        return config

    @classmethod
    def estimate(cls, model: ir.Model) -> dict[str, Any] | None:
        """A static estimate of how much of the graph the execution provider runs; None if there is none."""
        return None

    def __init__(self, compute: ir.DataType, *, inline: bool = False, accuracy_level: int | None = None):
        super().__init__(compute, accuracy_level)
        self.inline = inline
        self.functions: dict[tuple, tuple[ir.Function, list]] = {}
        """Signature -> the function, and the (dtype, dims) of its outputs."""
        self.tables: dict[Any, tuple[GraphTensor, GraphTensor]] = {}
        """RoPE layer -> cos and sin `[positions, dim/2]`, for targets whose kernels look up positions."""
        self.windowed = False
        """Whether KV caches hold the window only, where there is one."""
        self.notes: dict[str, int] = {}
        """The lowering's notes for the user -> number of layers affected."""

    usual_levels: ClassVar[dict[int, int]] = {}
    """Bits of a weight -> the default accuracy level of its matrix products; 0 (exact) for bits that aren't listed."""

    @classmethod
    def level_of(cls, bits: int, compute: ir.DataType, asked: int | None) -> int:
        """MatMulNBits' accuracy level for weights of this many bits: 0 multiplies dequantized weights, 4 rounds activations
        to int8 first."""
        return asked if asked is not None else cls.usual_levels.get(bits, 0) if compute == FLOAT else 0

    def note(self, text: str) -> None:
        """Record a choice of the lowering, once per layer."""
        self.notes[text] = self.notes.get(text, 0) + 1

    def fused(
        self, name: str, body: Callable[..., Any], operands: Sequence[Any], outputs: int = 1, **attributes: Any
    ) -> Any:
        """Call the fused op `name`; `body(ops, *operands, **attributes)` is its definition.

        operands: tensors, handles or None (an absent optional input).
        """
        if self.inline:
            return body(self, *operands, **attributes)
        formats = "".join(x.format for x in operands if isinstance(x, (LinearHandle, StackedHandle)))
        flat = [t for x in operands for t in (x.tensors if isinstance(x, (LinearHandle, StackedHandle)) else [x])]
        key = (name + formats, *((t and (t.dtype, t.dims)) for t in flat), *attributes.items())
        if key not in self.functions:
            self.functions[key] = self._define(name + formats, key, body, operands, flat, attributes)
        function, described = self.functions[key]
        values = {k: v for k, v in attributes.items() if v is not None}
        made = self.nodes_out(function.name, flat, described, domain=DOMAIN, overload=function.overload, **values)
        return made[0] if outputs == 1 else tuple(made)

    def _define(self, name, key, body, operands, flat, attributes):
        inner = type(self)(self.compute, inline=True, accuracy_level=self.accuracy_level)
        formals = [ir.Value(name=f"x{i}") for i in range(len(flat))]
        inputs = iter(
            None if t is None else GraphTensor(inner, f, t.dtype, t.dims) for t, f in zip(flat, formals, strict=True)
        )
        rebuilt = []
        for x in operands:
            if isinstance(x, (LinearHandle, StackedHandle)):
                rebuilt.append(x.rebind(inner, [next(inputs) for _ in x.tensors]))
            else:
                rebuilt.append(next(inputs))
        made = body(inner, *rebuilt, **attributes)
        made = made if isinstance(made, tuple) else (made,)
        graph = ir.Graph(
            formals,
            [t.value for t in made],
            nodes=inner.nodes,
            opset_imports={"": OPSET, CONTRIB: 1},
            name=name,
        )
        overload = hashlib.sha256(repr(key).encode()).hexdigest()[:8]
        declared = [ir.Attr(k, _TYPES[type(v)], None) for k, v in attributes.items() if v is not None]
        function = ir.Function(DOMAIN, name, overload, graph=graph, attributes=declared)
        return function, [(t.dtype, t.dims) for t in made]

    # ------------------------------------------------------------------------------------------------ fused ops

    def rms_norm(self, x, weight, *, eps):
        return self.fused("RMSNorm", type(self).rms_norm_body, [x, weight], eps=float(eps))

    def add_rms_norm(self, x, d, weight, *, eps):
        return self.fused("AddRMSNorm", type(self).add_rms_norm_body, [x, d, weight], 2, eps=float(eps))

    def glu_ffn(self, x, gate, up, down, *, act):
        return self.fused("GluFfn", GraphOps.glu_ffn, [x, gate, up, down], act=act)

    def moe(self, x, weights, chosen, gate, up, down, *, act, count):
        operands = [x, weights, chosen, gate, up, down]
        return self.fused("MoE", type(self).moe_body, operands, act=act, count=count)

    def attention(self, q, k, v, mask, bias, *, groups, scale, softcap=None, sinks=None, dropout=None):
        if sinks is not None:
            return self.fused(
                "SinkAttention",
                _sink_attention,
                [q, k, v, mask, bias, sinks],
                groups=groups,
                scale=float(scale),
                softcap=softcap,
            )
        return self.fused(
            "Attention", GraphOps.attention, [q, k, v, mask, bias], groups=groups, scale=float(scale), softcap=softcap
        )

    # bodies that a target may replace with faster equivalents

    moe_body = GraphOps.moe
    rms_norm_body = GraphOps.rms_norm
    add_rms_norm_body = GraphOps.add_rms_norm


def _sink_attention(
    ops: GraphOps, q: Any, k: Any, v: Any, mask: Any, bias: Any, sinks: Any, **attributes: Any
) -> GraphTensor:
    return GraphOps.attention(ops, q, k, v, mask, bias, sinks=sinks, **attributes)
