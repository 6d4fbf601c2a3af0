"""Fused ops of the vocabulary, each with a default body written in the primitives that every back end implements.

The default body of a fused op is its definition: reference, fallback, test oracle, and the function body in ONNX files. A back
end overrides a fused op if it has a faster implementation.

Shapes use these letters: B batch, T new tokens, S keys (past and new tokens), D hidden width, H query heads, G key/value
heads, K head width, F feed-forward width, E experts, V vocabulary.

Precision policy: norms, softmax and rotary tables are computed in float32 and cast back to the input's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from edgeformer.ops.pooled import Pooled
from edgeformer.ops.tensor import (
    CachePlace,
    DropoutMap,
    HasPositions,
    LinearMap,
    MaskRule,
    Opaque,
    RotaryScheme,
    StackedMaps,
    T,
)

if TYPE_CHECKING:
    from edgeformer.ops.handle import LayerHandle

R = TypeVar("R")

MASKED = -1e9
"""Added to the score of a masked key. Finite: with -inf, rows without a visible key become NaN in MLX and ONNX Runtime, which
would spread to other rows."""


@dataclass(frozen=True)
class Rotary(Generic[T]):
    """Rotation angles of the new tokens: `cos` and `sin` are `[B, 1, T, rotated/2]`.

    `layer` is the spec node they came from, for back ends whose kernel needs a table over positions.
    """

    cos: T
    sin: T
    layer: RotaryScheme


@dataclass(frozen=True)
class Bias(Generic[T]):
    """A position bias added to the scores: `[B or 1, H, T, S]`."""

    tensor: T


@dataclass(frozen=True)
class Heads:
    """Sizes of attention: `heads` query heads (H) share `kv_heads` key and value heads (G); keys have `head_dim` channels (K),
    values `value_dim`. Scores are multiplied by `scale`, then soft-capped to ±`softcap` by tanh if given."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    softcap: float | None = None

    @property
    def groups(self) -> int:
        """Query heads per key/value head."""
        return self.heads // self.kv_heads


class Ops(Pooled[T]):
    """Primitives plus the fused ops. `weight`, `x`, ... are tensors; `gate`, `up`, ... are *handles* of declarations.

    A handle is callable on `[..., inputs]`; a `Stacked` handle has `each(x)`: `[B, E, T, inputs] -> [B, E, T, outputs]`.
    """

    routings: list[tuple[T, T]] | None = None
    """Recorded routing of mixtures of experts, or None while not recording; see `routed`."""

    def enter(self, handle: LayerHandle, method: Callable[..., R], *inputs: object) -> R:
        """Call a layer's method (`apply`, `add`, ...) with its handle: the single hook through which all layers are entered."""
        return method(self, handle, *inputs)

    def part(self, name: str, function: Callable[..., R], *inputs: object) -> R:
        """Call a part of a layer that profiles list separately, such as `head`."""
        return function(*inputs)

    # ------------------------------------------------------------------------------------------------- activations

    def activate(self, name: str, x: T) -> T:
        """Apply the activation called `name`: the method `act_<name>`."""
        return getattr(self, f"act_{name}")(x)

    def act_relu(self, x: T) -> T:
        """max(x, 0)."""
        return self.relu(x)

    def act_relu2(self, x: T) -> T:
        """max(x, 0)² (So et al. 2021, "Primer")."""
        y = self.relu(x)
        return y * y

    def act_silu(self, x: T) -> T:
        """x · sigmoid(x) (Elfwing et al. 2017)."""
        return x * self.sigmoid(x)

    def act_gelu(self, x: T) -> T:
        """x · Φ(x) with the error function (Hendrycks & Gimpel 2016)."""
        return x * (self.erf(x * 0.5**0.5) + 1.0) * 0.5

    def act_gelu_tanh(self, x: T) -> T:
        """GELU's tanh approximation (Hendrycks & Gimpel 2016): 0.5x(1 + tanh(√(2/π)(x + 0.044715x³)))."""
        return x * (self.tanh((x + x * x * x * 0.044715) * 0.7978845608028654) + 1.0) * 0.5

    def act_quick_gelu(self, x: T) -> T:
        """x · sigmoid(1.702x)."""
        return x * self.sigmoid(x * 1.702)

    def act_sigmoid(self, x: T) -> T:
        """1 / (1 + e ** -x)."""
        return self.sigmoid(x)

    def act_tanh(self, x: T) -> T:
        """tanh(x)."""
        return self.tanh(x)

    def act_identity(self, x: T) -> T:
        """x, which gives the bilinear gate of Shazeer 2020."""
        return x

    # ------------------------------------------------------------------------------------------------------- norms

    def rms_norm(self, x: T, weight: T, *, eps: float) -> T:
        """x / sqrt(mean(x²) + eps) · weight over the last axis (Zhang & Sennrich 2019). x: [..., D], weight: [D]."""
        f = self.f32(x)
        return self.cast(f * self.rsqrt(self.mean(f * f) + eps), x) * weight

    def add_rms_norm(self, x: T, d: T, weight: T, *, eps: float) -> tuple[T, T]:
        """`(x + d, rms_norm(x + d))`."""
        total = x + d
        return total, Ops.rms_norm(self, total, weight, eps=eps)

    def layer_norm(self, x: T, weight: T | None, bias: T | None, *, eps: float) -> T:
        """(x − mean) / sqrt(var + eps) · weight + bias over the last axis (Ba et al. 2016). Both may be None."""
        f = self.f32(x)
        f = f - self.mean(f)
        y = self.cast(f * self.rsqrt(self.mean(f * f) + eps), x)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def add_layer_norm(self, x: T, d: T, weight: T | None, bias: T | None, *, eps: float) -> tuple[T, T]:
        """`(x + d, layer_norm(x + d))`."""
        total = x + d
        return total, Ops.layer_norm(self, total, weight, bias, eps=eps)

    # ---------------------------------------------------------------------------------------- linear maps and FFNs

    def linears(self, x: T, *handles: LinearMap[T]) -> tuple[T, ...]:
        """Apply several linear maps to one input (q, k, v): the hook for back ends that pack them into one.

        A back end may return its own tuple type that keeps the packed product; `attend` receives it unchanged.
        """
        return tuple(handle(x) for handle in handles)

    def glu_ffn(self, x: T, gate: LinearMap[T], up: LinearMap[T], down: LinearMap[T], *, act: str) -> T:
        """down(act(gate(x)) · up(x)) (Shazeer 2020). x: [B, T, D]."""
        return down(self.activate(act, gate(x)) * up(x))

    def routed(self, scores: T, chosen: T) -> None:
        """Called by mixtures of experts with each token's scores [B, T, E], which sum to 1, and its chosen experts [B, T, k].

        Recorded only inside `expert_balance.load_balancing`.
        """
        if self.routings is not None:
            self.routings.append((scores, chosen))

    def within_groups(self, scores: T, groups: int, size: int, count: int) -> T:
        """Scores [B, T, groups · size], set to 0 outside the `count` groups of experts that have the best single score."""
        grouped = self.reshape(scores, (0, -1, groups, size))
        best = self.reshape(self.topk(grouped, 1)[0], (0, -1, groups))
        chosen = self.topk(best, count)[1]
        hits = self.equal(self.expand_dims(chosen, 3), self.arange(groups, chosen))
        allowed = self.sum(self.cast(hits, scores), 2)
        return self.reshape(grouped * self.expand_dims(allowed, 3), (0, -1, groups * size))

    def moe(
        self,
        x: T,
        weights: T,
        chosen: T,
        gate: StackedMaps[T],
        up: StackedMaps[T],
        down: StackedMaps[T],
        *,
        act: str,
        count: int,
    ) -> T:
        """Mixture of gated FFNs. weights, chosen: [B, T, k]; handles are Stacked over `count` experts.

        The default computes every expert and multiplies it by its weight (0 if not chosen).
        """
        hits = self.equal(self.expand_dims(chosen, 3), self.arange(count, chosen))  # [B, T, k, E]
        dense = self.sum(self.cast(hits, x) * self.expand_dims(weights, 3), 2)  # [B, T, E]
        x = self.expand_dims(x, 1)
        y = down.each(self.activate(act, gate.each(x)) * up.each(x))  # [B, E, T, D]
        return self.sum(y * self.expand_dims(self.permute(dense, (0, 2, 1)), 3), 1)

    # --------------------------------------------------------------------------------------------------- attention

    def split_heads(self, x: T, heads: int, dim: int) -> T:
        """[B, T, heads·dim] -> [B, heads, T, dim]."""
        return self.permute(self.reshape(x, (0, -1, heads, dim)), (0, 2, 1, 3))

    def merge_heads(self, x: T, width: int) -> T:
        """[B, heads, T, dim] -> [B, T, heads·dim]."""
        return self.reshape(self.permute(x, (0, 2, 1, 3)), (0, -1, width))

    def norm_heads(self, norm: LayerHandle, x: T, heads: int, dim: int) -> T:
        """Apply a norm's handle to queries or keys [B, T, heads·dim]: per head, or over all heads if `Norm.over_heads`."""
        if norm.layer.over_heads:
            return norm.layer.on_heads(self, norm, x, heads, dim)
        return self.reshape(norm(self.reshape(x, (0, -1, heads, dim))), (0, -1, heads * dim))

    def rotary(self, layer: RotaryScheme, step: HasPositions[T], frequencies: T) -> Rotary[T]:
        """The angles of a step's new tokens: position · frequency. frequencies: [dim/2], those of this step."""
        angles = self.expand_dims(self.cast(step.positions, frequencies), 2) * frequencies
        cos, sin = self.expand_dims(self.cos(angles), 1), self.expand_dims(self.sin(angles), 1)
        if (magnitude := layer.magnitude()) != 1.0:
            cos, sin = cos * magnitude, sin * magnitude
        return Rotary(cos, sin, layer)

    def rotate(self, x: T, cos: T, sin: T, *, dim: int, rotated: int, interleaved: bool = False) -> T:
        """Apply RoPE (Su et al. 2021) to the first `rotated` of `dim` channels, in pairs (i, i + rotated/2), or (2i, 2i + 1) if
        `interleaved`. x: [B, H, T, dim]; cos, sin: [B, 1, T, rotated/2]."""
        cos, sin, half = self.cast(cos, x), self.cast(sin, x), rotated // 2
        if interleaved:
            head, *rest = self.split(x, (rotated, dim - rotated), -1) if rotated < dim else (x,)
            a, b = self.split(self.reshape(head, (0, 0, 0, half, 2)), (1, 1), -1)
            cos, sin = self.expand_dims(cos, 4), self.expand_dims(sin, 4)
            turned = self.concat([a * cos - b * sin, b * cos + a * sin], -1)
            return self.concat([self.reshape(turned, (0, 0, 0, rotated)), *rest], -1)
        if rotated < dim:
            a, b, rest = self.split(x, (half, half, dim - rotated), -1)
            return self.concat([a * cos - b * sin, b * cos + a * sin, rest], -1)
        a, b = self.split(x, (half, half), -1)
        return self.concat([a * cos - b * sin, b * cos + a * sin], -1)

    def turn(self, x: T, position: Rotary[T], head_dim: int) -> T:
        """`rotate` with a position scheme's angles and sizes. x: [B, H, T, head_dim]."""
        layer = position.layer
        cos, sin = position.cos, position.sin
        return self.rotate(x, cos, sin, dim=head_dim, rotated=layer.dim, interleaved=layer.interleaved)

    def mask(self, spec: MaskRule, queries: T, keys: T, valid: T | None, prefix: T | None = None) -> Opaque:
        """Mask of the keys visible to each query, in the form this back end's `attention` takes (opaque to layers).

        spec: a `Mask` node; queries: positions [B or 1, T]; keys: positions [B or 1, S]; valid: bool [B, S] or None; prefix:
        int64 [B], for masks that have one.
        The default is an additive float32 tensor [B or 1, 1, T, S], or None when every key is seen.
        """
        q, k, seen = self.expand_dims(queries, 2), self.expand_dims(keys, 1), None
        if spec.causal:
            seen = self.less(k, q + 1)
        if spec.window is not None:
            near = self.less(q - k, spec.window)
            if not spec.causal:
                near = near & self.less(k - q, spec.window)
            seen = near if seen is None else seen & near
        if spec.chunk is not None:
            same = self.equal(self.floor_divide(q, spec.chunk), self.floor_divide(k, spec.chunk))
            seen = same if seen is None else seen & same
        if spec.prefix and seen is not None:
            assert prefix is not None  # checked by `Step.prepare`
            first = self.less(k, self.expand_dims(self.expand_dims(prefix, 1), 2))
            seen = self.less(0, self.cast(seen, k) + self.cast(first, k))  # either
        if valid is not None:
            real = self.expand_dims(valid, 1)
            seen = real if seen is None else seen & real
        return None if seen is None else self.expand_dims(self.where(seen, 0.0, MASKED), 1)

    def attention(
        self,
        q: T,
        k: T,
        v: T,
        mask: Opaque,
        bias: T | None,
        *,
        groups: int,
        scale: float,
        softcap: float | None = None,
        sinks: T | None = None,
        dropout: DropoutMap[T] | None = None,
    ) -> T:
        """softmax(softcap(q kᵀ · scale) + bias + mask) v, in float32 (Vaswani et al. 2017; softcap: Gemma Team 2024).

        q: [B, H, T, K]; k: [B, G, S, K]; v: [B, G, S, Kv]; groups = H / G. Returns [B, H, T, Kv]. sinks: see `weigh`.
        """
        if groups > 1:
            k, v = self.repeat_heads(k, groups), self.repeat_heads(v, groups)
        scores = self.f32((q * scale) @ self.permute(k, (0, 1, 3, 2)))  # dot products of 128 channels can overflow fp16
        if softcap is not None:
            scores = self.tanh(scores * (1 / softcap)) * softcap
        if bias is not None:
            scores = scores + bias
        return self.weigh(scores if mask is None else scores + mask, v, sinks, dropout)

    def weigh(self, scores: T, v: T, sinks: T | None = None, dropout: DropoutMap[T] | None = None) -> T:
        """softmax(scores) v. scores: float32 [B, H, T, S], already masked; v: [B, H, S, Kv].

        sinks: [H], a logit per head that is part of the softmax but has no value (OpenAI 2025, gpt-oss; Miller 2023).
        """
        if sinks is not None:  # as an extra key in front, with value 0
            sink = self.expand_dims(self.expand_dims(self.cast(sinks, scores), 1), 2)
            scores = self.concat([self.sum(scores, -1, keep=True) * 0.0 + sink, scores], -1)
            v = self.concat([self.sum(v, 2, keep=True) * 0.0, v], 2)
        weights = self.cast(self.softmax(scores), v)
        return (weights if dropout is None else dropout(weights)) @ v

    def additive_mask(self, mask: Opaque, scores: T) -> T | None:
        """The mask as a tensor to add to scores [B, H, T, S], for layers that compute their own scores."""
        return mask

    def attend(
        self,
        slot: CachePlace | None,
        qkv: tuple[T, ...],
        shape: Heads,
        *,
        norms: tuple[LayerHandle, LayerHandle] | None = None,
        position: Rotary[T] | Bias[T] | None = None,
        mask: Opaque = None,
        sinks: T | None = None,
        dropout: DropoutMap[T] | None = None,
    ) -> T:
        """Normalise heads, rotate, cache k and v, attend: the single hook for fused kernels and KV caches.

        qkv: [B, T, H·K], [B, T, G·K], [B, T, G·Kv], as returned by `linears`; returns [B, T, H·Kv]. `norms` are the handles of
        the query and key norms, or None; `slot` is the layer's place in the KV cache, or None.
        """
        q, k, v = qkv
        if norms is not None:
            q = self.norm_heads(norms[0], q, shape.heads, shape.head_dim)
            k = self.norm_heads(norms[1], k, shape.kv_heads, shape.head_dim)
        q = self.split_heads(q, shape.heads, shape.head_dim)
        k = self.split_heads(k, shape.kv_heads, shape.head_dim)
        v = self.split_heads(v, shape.kv_heads, shape.value_dim)
        if isinstance(position, Rotary):
            q, k = (self.turn(x, position, shape.head_dim) for x in (q, k))
        if slot is not None:
            k, v = slot.append(k=k, v=v)
        y = self.attention(
            q,
            k,
            v,
            mask,
            position.tensor if isinstance(position, Bias) else None,
            groups=shape.groups,
            scale=shape.scale,
            softcap=shape.softcap,
            sinks=sinks,
            dropout=dropout,
        )
        return self.merge_heads(y, shape.heads * shape.value_dim)
