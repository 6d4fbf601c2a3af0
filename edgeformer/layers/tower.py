"""A stack of blocks in a model with several stacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.stack import Blocks
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Dropout, Layer, Norm, Sub


@dataclass(frozen=True, kw_only=True)
class Tower(Blocks):
    """The part of an encoder or decoder between embedding and head: positions, a norm, blocks, a final norm."""

    kind: ClassVar[str] = "tower"
    positions: Layer | None = None
    embed_scale: float = 1.0
    embed_norm: Norm | None = None
    dropout: float = 0.0

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {}
        if self.positions is not None:
            params |= {"position_embed": Sub(self.positions, width)}
        if self.embed_norm is not None:
            params |= {"embed_norm": Sub(self.embed_norm, width)}
        if self.dropout:
            params |= {"dropout": Dropout(self.dropout)}
        return params | self.stack_params(width)

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, step: Step) -> Tensor:
        """Map embeddings [B, T, D] to the final hidden states [B, T, D]."""
        if self.embed_scale != 1:
            x = x * self.embed_scale
        if self.positions is not None:
            x = x + ops.cast(p.position_embed(step), x)
        if self.embed_norm is not None:
            x = p.embed_norm(x)
        return self.run_stack(p, p.dropout(x) if self.dropout else x, step)
