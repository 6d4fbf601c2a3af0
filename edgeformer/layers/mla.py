"""Multi-head latent attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.layers.mask import Mask
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Layer, Linear, Node, Norm, Position, Stacked, Sub


@dataclass(frozen=True, kw_only=True)
class MLA(Layer):
    """Keys and values from one low-rank latent per token (DeepSeek-AI 2024, arXiv 2405.04434, section 2.1).

    Only c = norm(kv_down(x)) of width `rank` and one shared rotary key of width `rope` are cached. The per-head projections of
    the latent are absorbed: queries are mapped to latent space (`k_up`, [nope -> rank] per head) and attend to one key head of
    width rank + rope; the value is the latent itself, and the result is mapped by `v_up` ([rank -> v_dim] per head). With
    `q_rank`, queries have their own latent. `bias` applies to the maps from and to the residual stream.
    """

    kind: ClassVar[str] = "mla"
    heads: int
    nope: int
    rope: int
    v_dim: int
    rank: int
    position: Position
    norm: Norm
    q_rank: int | None = None
    bias: bool = False
    mask: Mask = Mask()
    scale: float | None = None

    def params(self, width: int) -> dict[str, Declaration]:
        queries: dict[str, Declaration] = {"q": Linear(self.q_rank or width, self.heads * (self.nope + self.rope))}
        if self.q_rank is not None:
            queries |= {"q_down": Linear(width, self.q_rank, self.bias), "q_norm": Sub(self.norm, self.q_rank)}
        return queries | {
            "kv_down": Linear(width, self.rank + self.rope, self.bias),
            "norm": Sub(self.norm, self.rank),
            "k_up": Stacked(self.heads, self.nope, self.rank),
            "v_up": Stacked(self.heads, self.rank, self.v_dim),
            "o": Linear(self.heads * self.v_dim, width, self.bias, residual=True),
        }

    def cache(self) -> dict[str, tuple[int, int]]:
        return {"latent": (1, self.rank), "rope": (1, self.rope)}

    def per_step(self) -> tuple[Node, ...]:
        return (self.position, self.mask)

    def flops_per_key(self) -> int:
        return 2 * self.heads * (self.rank + self.rope + self.rank)

    def keys_seen(self, position: int, length: int) -> int:
        return self.mask.seen(position, length)

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, step: Step) -> Tensor:
        rotary = step.tables[self.position]

        def rotate(y: Tensor) -> Any:
            return ops.turn(y, rotary, self.rope)

        queries = p.q(x if self.q_rank is None else p.q_norm(p.q_down(x)))
        q = ops.split_heads(queries, self.heads, self.nope + self.rope)
        q_nope, q_rope = ops.split(q, (self.nope, self.rope), -1)
        latent, k_rope = ops.split(p.kv_down(x), (self.rank, self.rope), -1)
        latent, k_rope = ops.expand_dims(p.norm(latent), 1), rotate(ops.expand_dims(k_rope, 1))
        slot = step.slot(p)
        if slot is not None:
            latent, k_rope = slot.append(latent=latent, rope=k_rope)
        y = ops.attention(
            ops.concat([p.k_up.each(q_nope), rotate(q_rope)], -1),
            ops.concat([latent, k_rope], -1),
            latent,
            step.tables[self.mask],
            None,
            groups=self.heads,
            scale=(self.nope + self.rope) ** -0.5 if self.scale is None else self.scale,
        )
        return p.o(ops.merge_heads(p.v_up.each(y), self.heads * self.v_dim))
