"""Base of the ONNX Runtime targets: contrib operators as bodies of fused ops.

Facts behind the design (ONNX Runtime 1.31, CPU provider; covered by tests):

- `SimplifiedLayerNormalization` inside a function body crashes the loader, so bodies use `RMSNormalization` and
  `SkipSimplifiedLayerNormalization`.
- Weights stay [outputs, inputs]. q, k and v are one matrix product whose weights are concatenated in the graph; the runtime
  folds the concatenation at load time.
- `GroupQueryAttention` appends to a shared KV cache in place and takes q|k|v packed. It is causal by cache slot; masking by
  attention_mask is passed as `attention_bias`. Its RoPE takes one start position in prefill and one position per row in decode,
  so each row counts slots from its first real token: correct for left padding, right padding and none.
  (Not for a gap *inside* the first prompt, which no tool produces; edgeformer's runtime refuses it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from edgeformer.exporters.onnx.functions import FunctionOps
from edgeformer.exporters.onnx.graph_ops import CONTRIB, FLOAT, INT64, GraphOps, GraphTensor
from edgeformer.exporters.onnx.handles import LinearHandle, QuantizedStack
from edgeformer.exporters.onnx.store import GraphStore
from edgeformer.exporters.onnx.targets._experts import looped_experts
from edgeformer.layers.mask import Mask
from edgeformer.ops import Bias, Heads, Rotary
from edgeformer.weights.formats import GROUP, Format

INT32 = ir.DataType.INT32


@dataclass(frozen=True)
class _Mask:
    """A mask in three forms: `full` for the default attention, `extra` (without causality) for GroupQueryAttention, and
    `padding` (without the window, either) for GroupQueryAttention on a windowed cache."""

    full: Any
    extra: Any
    padding: Any = None


@dataclass(frozen=True, kw_only=True)
class _WithoutCausality(Mask):
    """The mask passed to `GroupQueryAttention` as `attention_bias`: padding, chunks and sliding window."""

    causal: bool = False


class _PackedProduct:
    """The packed matrix product of several linear maps; split only when a part is used separately."""

    def __init__(self, ops: GraphOps, tensor: GraphTensor, sizes: list[int]):
        self.ops, self.tensor, self.sizes = ops, tensor, sizes
        self._parts: list[GraphTensor] | None = None

    def part(self, index: int) -> ir.Value:
        if self._parts is None:
            self._parts = list(self.ops.split(self.tensor, self.sizes, -1))
        return self._parts[index].value


class _Part(GraphTensor):
    """One linear map's slice of a packed product."""

    def __init__(self, packed: _PackedProduct, index: int):
        self.packed, self.index = packed, index
        self.ops, self.dtype = packed.ops, packed.tensor.dtype
        self.dims = (*packed.tensor.dims[:-1], packed.sizes[index])

    @property
    def value(self) -> ir.Value:  # type: ignore[override]
        return self.packed.part(self.index)


@dataclass(frozen=True)
class _Cached:
    """Operands of attention with a KV cache, in GroupQueryAttention's order; absent ones are None."""

    q: GraphTensor
    """[B, T, H·K], or q, k and v side by side [B, T, (H + 2G)·K], with `k` and `v` None."""
    k: GraphTensor | None
    v: GraphTensor | None
    past_k: GraphTensor
    past_v: GraphTensor
    last: GraphTensor
    total: GraphTensor
    cos: GraphTensor | None
    sin: GraphTensor | None
    positions: GraphTensor | None
    bias: GraphTensor | None
    sinks: GraphTensor | None
    scales: tuple[GraphTensor, ...] = ()
    """Of an int8 KV cache: scales of keys and of values, one per head and channel."""


class OnnxRuntimeTarget(FunctionOps):
    """A lowering with ONNX Runtime's contrib operators as bodies of fused ops."""

    attention_types: ClassVar[tuple[ir.DataType, ...]] = (FLOAT, ir.DataType.FLOAT16)
    """The dtypes that this execution provider's GroupQueryAttention supports."""

    def codes_form(self, shape, format, *, table):
        if table:  # GatherBlockQuantized takes rows of bytes
            return ir.DataType.UINT8, format.packed_shape(shape)
        return ir.DataType.UINT8, (*shape[:-1], shape[-1] // GROUP, GROUP * format.bits // 8)

    def quantized_linear(self, x, codes, scales, format):
        rows, groups = codes.size(0), codes.size(1)
        return self.node(
            "MatMulNBits",
            [x, codes, scales],
            dims=(*x.dims[:-1], rows),
            domain=CONTRIB,
            N=rows,
            K=groups * GROUP,
            bits=format.bits,
            block_size=GROUP,
            accuracy_level=self.level_of(format.bits, x.dtype, self.accuracy_level),
        )

    def unpacked(self, codes: GraphTensor, dtype: ir.DataType, format: Format) -> GraphTensor:
        """code − zero as floats, by arithmetic: bytes [..., n] -> [..., n · 8 / bits]."""
        x = self.cast_to(codes, dtype)
        if format.bits == 4:
            high = self.unary("Floor", x * 0.0625)
            pairs = [self.expand_dims(part, x.ndim) for part in (x - high * 16.0, high)]
            x = self.concat(pairs, x.ndim)
            x = self.reshape(x, (*(0 for _ in codes.dims[:-1]), codes.size(codes.ndim - 1) * 2))
        return x - float(format.zero)

    def dequantized_stack(self, codes, scales, format):
        """By arithmetic, which the runtime folds at load time; it would run DequantizeLinear in each step."""
        x = self.unpacked(codes, scales.dtype, format) * self.expand_dims(scales, scales.ndim)
        return self.reshape(x, (0, 0, scales.size(2) * GROUP))

    def moe_body(self, x, weights, chosen, gate, up, down, *, act, count):
        if isinstance(gate, QuantizedStack):
            return looped_experts(self, x, weights, chosen, gate, up, down, act=act)
        return self.plain_experts(x, weights, chosen, gate, up, down, act=act, count=count)

    plain_experts = GraphOps.moe
    """The body of `moe` with float weights."""

    def quantized_take(self, codes, scales, ids, format):
        return self.node(
            "GatherBlockQuantized",
            [codes, ids, scales],
            dims=(*ids.dims, scales.size(1) * GROUP),
            dtype=scales.dtype,
            domain=CONTRIB,
            bits=format.bits,
            block_size=GROUP,
            gather_axis=0,
            quantize_axis=1,
        )

    def linears(self, x, *handles: LinearHandle):
        if len({h.format for h in handles}) > 1:
            return super().linears(x, *handles)
        with self.scope("qkv"):
            joined = [self.concat(list(ts), 0) for ts in zip(*(h.tensors for h in handles), strict=True)]
            packed = _PackedProduct(self, handles[0].rebind(self, joined)(x), [h.tensors[0].dims[0] for h in handles])
        return tuple(_Part(packed, i) for i in range(len(handles)))

    def rms_norm_body(self, x, weight, *, eps):
        return self.node("RMSNormalization", [x, weight], axis=-1, epsilon=eps)

    def add_rms_norm_body(self, x, d, weight, *, eps):
        return self._skip_norm("SkipSimplifiedLayerNormalization", [x, d, weight], eps)

    def add_layer_norm(self, x, d, weight, bias, *, eps):
        if weight is None:
            weight = np.ones(x.dims[-1], x.dtype.numpy())
        return self._skip_norm("SkipLayerNormalization", [x, d, weight, bias], eps)

    def _skip_norm(self, op: str, inputs: list[Any], eps: float) -> tuple[GraphTensor, GraphTensor]:
        x = inputs[0]
        described = [(x.dtype, x.dims), (FLOAT, ()), (FLOAT, ()), (x.dtype, x.dims)]
        out = self.nodes_out(op, inputs, described, domain=CONTRIB, epsilon=eps)
        for statistic in out[1:3]:
            statistic.value.name = ""  # an unnamed output is not computed
        return out[3], out[0]

    def mask(self, spec, queries, keys, valid, prefix=None):
        full = super().mask(spec, queries, keys, valid, prefix)
        if not spec.causal or spec.prefix:  # the operator is causal
            return _Mask(full, None)
        extra = self._bias(_WithoutCausality(window=spec.window, chunk=spec.chunk), queries, keys, valid)
        return _Mask(full, extra, self._bias(_WithoutCausality(), queries, keys, valid) if self.windowed else None)

    def _bias(
        self, rule: Mask, queries: GraphTensor, keys: GraphTensor, valid: GraphTensor | None
    ) -> GraphTensor | None:
        """A mask as GroupQueryAttention's attention_bias."""
        mask = super().mask(rule, queries, keys, valid)
        if mask is None:
            return None
        if mask.dims[2] == 1:  # padding alone is the same for every query, but the operator needs one row per query
            new, one = self.shape(queries, 1), self.ints(1)
            rows = self.node("Concat", [one, one, new, one], dims=(4,), dtype=INT64, axis=0)
            mask = self.node("Expand", [mask, rows], dims=(mask.dims[0], 1, None, mask.dims[3]))
        if self.compute != FLOAT:  # -1e9 is -inf in fp16, and a row of -inf is NaN
            mask = self.cast_to(self.node("Clip", [mask, np.float32(-6e4)]), self.compute)
        return mask

    def attention(self, q, k, v, mask, bias, **attributes):
        return super().attention(q, k, v, self.additive_mask(mask, q), bias, **attributes)

    def additive_mask(self, mask, scores):
        return mask.full if isinstance(mask, _Mask) else mask

    def attend(self, slot, qkv, shape, *, norms=None, position=None, mask: Any = None, sinks=None, dropout=None):
        refusal = None if slot is None else self._refusal(position, mask, shape)
        if slot is None or refusal:
            if refusal:
                self.note(f"attention uses its reference body, not GroupQueryAttention: {refusal}")
            rest = dict(mask=mask, sinks=sinks, dropout=dropout)
            return super().attend(slot, qkv, shape, norms=norms, position=position, **rest)
        q, k, v = qkv
        if norms is not None:
            q = self.norm_heads(norms[0], q, shape.heads, shape.head_dim)
            k = self.norm_heads(norms[1], k, shape.kv_heads, shape.head_dim)
        cos = sin = positions = None
        interleaved = False
        if isinstance(position, Rotary):
            table, reason = self.tables.get(position.layer), None
            if table is None:
                reason = "its angles depend on the sequence length"
            elif position.layer.dim % 16 or shape.head_dim % 16:
                reason = (
                    "GroupQueryAttention's RoPE needs multiples of 16 channels,"
                    f" and this layer has {position.layer.dim} of head_dim {shape.head_dim}"
                )
            if reason or table is None:
                self.note(f"RoPE uses its reference body: {reason}")
                q = self._rotate(q, position, shape.heads, shape.head_dim)
                k = self._rotate(k, position, shape.kv_heads, shape.head_dim)
            else:
                (cos, sin), positions = table, self._positions(slot.store)
                interleaved = position.layer.interleaved
        if (packed := _whole_product(q, k, v)) is not None:
            q, k, v = packed, None, None
        store = slot.store
        assert isinstance(store, GraphStore)
        window = store.windows.get(slot.path)
        extra = mask.extra if window is None else mask.padding
        if isinstance(position, Bias):
            extra = extra + self.cast(position.tensor, extra)
        past = [store.past[slot.path, name] for name in ("k", "v")]
        scales = [store.scales[slot.path, name] for name in ("k", "v")] if store.scales else []
        y, *present = self.fused(
            "CachedAttention"
            + ("" if window is None else "Windowed")
            + ("Int8" if scales else "")
            + ("" if sinks is None else "Sinks"),
            type(self).cached_attention_body,
            [q, k, v, *past, *self._lengths(slot.store), cos, sin, positions, extra, sinks, *scales],
            3,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            scale=float(shape.scale),
            softcap=shape.softcap,
            interleaved=int(interleaved) or None,
            window=window,
        )
        store.present[slot.path, "k"], store.present[slot.path, "v"] = present
        return y

    def cached_attention_body(self, *operands, heads, kv_heads, scale, softcap, interleaved, window):
        """The body as GroupQueryAttention. operands: those of `_Cached`, in order."""
        given = _Cached(*operands[:12], scales=operands[12:])
        q, past_k, past_v = given.q, given.past_k, given.past_v
        attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": scale}
        if given.cos is not None:
            attributes |= {"do_rotary": 1, "rotary_interleaved": interleaved or 0}
        if softcap is not None:
            attributes["softcap"] = float(softcap)
        if window is not None:
            attributes |= {"local_window_size": window, "sliding_window_cache": 1}
        if given.scales:  # int8, one scale per head and channel
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        cache = (past_k.dims[0], past_k.dims[1], None, past_k.dims[3])
        described = [(q.dtype, (*q.dims[:2], heads * past_k.dims[3])), (past_k.dtype, cache), (past_v.dtype, cache)]
        return tuple(self.nodes_out("GroupQueryAttention", operands, described, domain=CONTRIB, **attributes))

    def _lengths(self, store: Any) -> tuple[GraphTensor, GraphTensor]:
        """GroupQueryAttention's seqlens_k (the last slot, per row) and total sequence length."""

        def make() -> tuple[GraphTensor, GraphTensor]:
            mask = store.attention_mask
            batch, total = self.shape(mask, 0), self.shape(mask, 1)
            last = self.node("Expand", [self.cast_to(total - 1, INT32), batch], dims=(None,))
            return last, self.cast_to(self.reshape(total, ()), INT32)

        return self._once(store, "lengths", make)

    def _positions(self, store: Any) -> GraphTensor:
        """Positions counted from each row's first real token, masked slots skipped: [B, T]."""

        def make() -> GraphTensor:
            mask = store.attention_mask
            first = self.node("ArgMax", [mask], dims=(mask.dims[0], 1), axis=1, keepdims=1)
            counted = (self.cumsum(mask) + (first - 1)) * mask
            return self.last(counted, self.shape(store.input_ids, 1))

        return self._once(store, "positions", make)

    def _once(self, store: Any, name: str, make: Any) -> Any:
        if name not in store.shared:
            scopes, self.scopes = self.scopes, ["step"]
            store.shared[name] = make()
            self.scopes = scopes
        return store.shared[name]

    def _refusal(self, position: Any, mask: Any, shape: Heads) -> str | None:
        """Why GroupQueryAttention can't compute this attention; None if it can."""
        if self.compute not in self.attention_types:
            types = ", ".join(t.name for t in self.attention_types)
            return f"this provider's GroupQueryAttention supports {types}, not {self.compute.name}"
        if mask.extra is None:
            return "GroupQueryAttention is always causal, and this mask is bidirectional or has a prefix"
        if shape.head_dim != shape.value_dim:
            return "keys and values differ in width"
        if shape.head_dim % 8:
            return f"GroupQueryAttention needs a head_dim divisible by 8, and this one is {shape.head_dim}"
        return None

    def _rotate(self, x: GraphTensor, rotary: Rotary, heads: int, head_dim: int) -> GraphTensor:
        """Reference RoPE of [B, T, heads·head_dim]."""
        split = self.split_heads(x, heads, head_dim)
        return self.merge_heads(self.turn(split, rotary, head_dim), heads * head_dim)


def _whole_product(*parts: Any) -> GraphTensor | None:
    """The packed product if `parts` are all of its parts, in order; otherwise None."""
    if not all(isinstance(p, _Part) for p in parts) or len({id(p.packed) for p in parts}) > 1:
        return None
    packed = parts[0].packed
    return packed.tensor if [p.index for p in parts] == list(range(len(packed.sizes))) else None
