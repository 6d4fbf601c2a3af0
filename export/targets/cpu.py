"""`cpu`: ONNX Runtime's CPU provider.

Facts that shaped it (ONNX Runtime 1.31, reproduced by tests/test_export.py): `SimplifiedLayerNormalization` inside a function
body crashes the loader, so bodies use `RMSNormalization` and `SkipSimplifiedLayerNormalization`; weights stay
[outputs, inputs] through `FusedMatMul(transB)`, which is prepacked like a plain MatMul; `GroupQueryAttention` appends to a
shared cache in place, but its own rotation takes one position per batch in a prompt, so rotation happens before it and
padding goes in as `attention_bias`. That makes one graph right for any attention_mask: left, right, or none.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgeformer.export.functions import FunctionOps
from edgeformer.export.graph_ops import CONTRIB, FLOAT, GraphTensor
from edgeformer.ops import Bias, Rotary

INT32 = ir.DataType.INT32


class Target(FunctionOps):
    """Contrib operators of ONNX Runtime's CPU provider as bodies."""

    contrib = True

    def linear(self, x, weight):
        if x.dtype != FLOAT:
            return super().linear(x, weight)  # FusedMatMul's CPU kernel is float32 only
        dims = (*x.dims[:-1], weight.dims[0])
        return self.node("FusedMatMul", [x, weight], dims=dims, domain=CONTRIB, transB=1)

    def rms_norm_body(self, x, weight, *, eps):
        return self.node("RMSNormalization", [x, weight], axis=-1, epsilon=eps)

    def add_rms_norm_body(self, x, d, weight, *, eps):
        described = [(x.dtype, x.dims), (FLOAT, ()), (FLOAT, ()), (x.dtype, x.dims)]
        out = self.nodes_out(
            "SkipSimplifiedLayerNormalization", [x, d, weight], described, domain=CONTRIB, epsilon=eps
        )
        return out[3], out[0]

    def add_layer_norm(self, x, d, weight, bias, *, eps):
        described = [(x.dtype, x.dims), (FLOAT, ()), (FLOAT, ()), (x.dtype, x.dims)]
        out = self.nodes_out("SkipLayerNormalization", [x, d, weight, bias], described, domain=CONTRIB, epsilon=eps)
        return out[3], out[0]

    def attend(self, slot, q, k, v, *, position=None, mask=None, **shape):
        refusal = self._refusal(slot, position, shape)
        if refusal:
            if slot is not None:
                self.note(f"attention runs its reference body: {refusal}")
            return super().attend(slot, q, k, v, position=position, mask=mask, **shape)
        if isinstance(position, Rotary):
            q = self._rotate(q, position, shape["heads"], shape["head_dim"])
            k = self._rotate(k, position, shape["kv_heads"], shape["head_dim"])
        store, path = slot.store, slot.path
        past = [store.past[path, name] for name in ("k", "v")]
        lengths, total = self._lengths(store)
        bias = self.cast_to(mask, q.dtype)
        y, present_k, present_v = self.fused(
            "CachedAttention",
            type(self).cached_attention_body,
            [q, k, v, *past, lengths, total, bias],
            3,
            heads=shape["heads"],
            kv_heads=shape["kv_heads"],
            scale=float(shape["scale"]),
            softcap=shape.get("softcap"),
        )
        store.present[path, "k"], store.present[path, "v"] = present_k, present_v
        return y

    def _refusal(self, slot: Any, position: Any, shape: dict[str, Any]) -> str | None:
        if slot is None:
            return "no cache"
        if isinstance(position, Bias):
            return "GroupQueryAttention takes no position bias here"
        if shape["head_dim"] != shape["value_dim"]:
            return "keys and values differ in width"
        if shape["head_dim"] % 8:
            return f"GroupQueryAttention needs a head_dim divisible by 8, this is {shape['head_dim']}"
        return None

    def cached_attention_body(self, q, k, v, past_k, past_v, lengths, total, bias, *, heads, kv_heads, scale, softcap):
        attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": scale}
        if softcap is not None:
            attributes["softcap"] = float(softcap)
        inputs = [q, k, v, past_k, past_v, lengths, total, None, None, None, bias]
        cache = (past_k.dims[0], past_k.dims[1], None, past_k.dims[3])
        described = [(q.dtype, q.dims), (q.dtype, cache), (q.dtype, cache)]
        return tuple(self.nodes_out("GroupQueryAttention", inputs, described, domain=CONTRIB, **attributes))

    def _lengths(self, store: Any) -> tuple[GraphTensor, GraphTensor]:
        """seqlens_k (last key's slot, per row) and the total length, as GroupQueryAttention wants them: once per graph."""
        if not hasattr(store, "lengths"):
            scopes, self.scopes = self.scopes, ["lengths"]
            total = self.node("Shape", [store.attention_mask], dims=(1,), dtype=ir.DataType.INT64, start=1, end=2)
            batch = self.node("Shape", [store.attention_mask], dims=(1,), dtype=ir.DataType.INT64, start=0, end=1)
            last = self.cast_to(self.node("Expand", [total - 1, batch], dims=(None,)), INT32)
            store.lengths = last, self.cast_to(self.reshape(total, ()), INT32)
            self.scopes = scopes
        return store.lengths

    def _rotate(self, x: GraphTensor, rotary: Rotary, heads: int, head_dim: int) -> GraphTensor:
        """Rotation of [B, T, heads·head_dim] by table look-up, or by the reference body where there is no table."""
        table = self.tables.get(rotary.layer)
        if table is None:
            x4 = self.split_heads(x, heads, head_dim)
            x4 = self.rotate(x4, rotary.cos, rotary.sin, dim=head_dim, rotated=rotary.layer.dim)
            return self.merge_heads(x4, heads * head_dim)
        attributes = {"num_heads": heads, "interleaved": 0}
        if rotary.layer.dim != head_dim:
            attributes["rotary_embedding_dim"] = rotary.layer.dim
        return self.node(
            "RotaryEmbedding", [x, self.position_ids, *table], domain=CONTRIB, **attributes
        )

