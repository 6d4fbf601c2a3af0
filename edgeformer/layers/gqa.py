"""Multi-head, grouped-query and multi-query attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from edgeformer.layers.mask import Mask
from edgeformer.ops import Bias, Heads, Ops, Rotary
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Dropout, Fold, Layer, Linear, Node, Norm, Position, Sizes, Sub, Vector, whole


@dataclass(frozen=True, kw_only=True)
class GQA(Layer):
    """`heads` query heads share `kv_heads` key/value heads (Ainslie et al. 2023, arXiv 2305.13245).

    kv_heads = heads is multi-head attention (Vaswani et al. 2017), kv_heads = 1 multi-query attention (Shazeer 2019).
    `position` is a rotary or bias scheme, or None if positions are added at the embedding or absent (NoPE, Kazemnejad et al.
    2023). `qk_norm` is applied to each head's query and key (Henry et al. 2020), or to all heads at once (`WholeNorm`), before
    RoPE. `clip` clamps queries and keys after `qk_norm`, and values (MPT, OLMo). `scale` defaults to head_dim ** -0.5.
    `sinks`: attention sinks, a learned logit per head without a value. `dropout` is applied to the attention weights.
    """

    kind: ClassVar[str] = "gqa"
    same_input: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v"),)
    reads: ClassVar[tuple[str, ...]] = ("q", "k", "v")
    resizes: ClassVar[frozenset[str]] = frozenset(("width", "heads", "kv_heads", "head_dim"))
    heads: int
    kv_heads: int
    head_dim: int
    position: Position | None = None
    mask: Mask = Mask()
    qk_norm: Norm | None = None
    bias: bool = False
    output_bias: bool = False
    scale: float | None = None
    clip: float | None = None
    softcap: float | None = None
    sinks: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.require_positive(heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim)
        self.require_positive(clip=self.clip, softcap=self.softcap)
        self.require(
            self.kv_heads > 0 and self.heads % self.kv_heads == 0,
            f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})",
        )
        if self.position is not None:
            self.position.require_heads(self, self.heads, self.head_dim)

    def params(self, width: int) -> dict[str, Declaration]:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        params: dict[str, Declaration] = {
            "q": Linear(width, q, self.bias),
            "k": Linear(width, kv, self.bias),
            "v": Linear(width, kv, self.bias),
            "o": Linear(q, width, self.output_bias, residual=True),
        }
        if (norm := self.qk_norm) is not None:
            q, kv = (q, kv) if norm.over_heads else (self.head_dim, self.head_dim)
            params |= {"q_norm": Sub(norm, q), "k_norm": Sub(norm, kv)}
        if self.sinks:
            params |= {"sinks": Vector(self.heads, fill=0.0)}
        if self.dropout:
            params |= {"dropout": Dropout(self.dropout)}
        return params

    def folds(self) -> tuple[Fold, ...]:
        if self.clip is not None:
            return ()
        return (Fold("v", ("o",), repeat=self.heads // self.kv_heads, block=self.head_dim),)

    def cache(self) -> dict[str, tuple[int, int]]:
        return {name: (self.kv_heads, self.head_dim) for name in ("k", "v")} if self.mask.causal else {}

    def cache_window(self) -> int | None:
        causal_window = self.mask.causal and self.mask.chunk is None and not self.mask.prefix
        return self.mask.window if causal_window else None

    def per_step(self) -> tuple[Node, ...]:
        return (self.mask,) if self.position is None else (self.position, self.mask)

    def resized(self, sizes: Sizes, width: int) -> Self:
        """Scale the number of heads with the width if heads · head_dim equalled it; the group size stays the same."""
        ratio = 1.0 if sizes.width is None or self.heads * self.head_dim != width else sizes.width / width
        head_dim = sizes.head_dim or self.head_dim
        heads = sizes.heads or whole(self.heads * self.head_dim * ratio / head_dim, "heads", sizes)
        if sizes.kv_heads is not None:
            kv_heads = sizes.kv_heads
        elif self.kv_heads == 1:
            kv_heads = 1
        else:
            kv_heads = whole(heads / (self.heads // self.kv_heads), "kv_heads", sizes)
        position = None if self.position is None else self.position.for_heads(heads, head_dim, self.head_dim)
        return replace(self, heads=heads, kv_heads=kv_heads, head_dim=head_dim, position=position)

    def flops_per_key(self) -> int:
        return 4 * self.heads * self.head_dim

    def keys_seen(self, position: int, length: int) -> int:
        return self.mask.seen(position, length)

    def shape(self) -> Heads:
        """The sizes of the attention, for `ops.attend`."""
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        return Heads(self.heads, self.kv_heads, self.head_dim, self.head_dim, scale, self.softcap)

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, step: Step) -> Tensor:
        qkv = ops.linears(x, p.q, p.k, p.v)
        norms = None if self.qk_norm is None else (p.q_norm, p.k_norm)
        if self.clip is not None:
            qkv, norms = self._clipped(ops, qkv, norms), None
        y = ops.attend(
            step.slot(p) if self.mask.causal else None,
            qkv,
            self.shape(),
            norms=norms,
            position=None if self.position is None else step.tables[self.position],
            mask=step.tables[self.mask],
            sinks=p.sinks if self.sinks else None,
            dropout=p.dropout if self.dropout else None,
        )
        return p.o(y)

    def _clipped(self, ops: Ops, qkv: tuple[Any, ...], norms: tuple[Any, Any] | None) -> tuple[Any, ...]:
        """Normalise q and k, and clamp q, k and v to ±`clip`."""
        q, k, v = qkv
        if norms is not None:
            q = ops.norm_heads(norms[0], q, self.heads, self.head_dim)
            k = ops.norm_heads(norms[1], k, self.kv_heads, self.head_dim)
        assert self.clip is not None
        return tuple(ops.clip(y, -self.clip, self.clip) for y in (q, k, v))

    def rotation(self, step: Step) -> Rotary | None:
        """The step's rotary angles, or None if positions aren't rotary."""
        found = None if self.position is None else step.tables[self.position]
        return found if isinstance(found, Rotary) else None

    def attended(self, ops: Ops, p: LayerHandle, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """Attention of queries [B, T, H·K] to all keys (already rotated) and values [B, G, S, K]; returns [B, T, H·K]."""
        q, position = ops.split_heads(q, self.heads, self.head_dim), self.rotation(step)
        bias = None if self.position is None else step.tables[self.position]
        y = ops.attention(
            q if position is None else ops.turn(q, position, self.head_dim),
            k,
            v,
            step.tables[self.mask],
            bias.tensor if isinstance(bias, Bias) else None,
            groups=self.heads // self.kv_heads,
            scale=self.head_dim**-0.5 if self.scale is None else self.scale,
            softcap=self.softcap,
            dropout=p.dropout if self.dropout else None,
        )
        return ops.merge_heads(y, self.heads * self.head_dim)
