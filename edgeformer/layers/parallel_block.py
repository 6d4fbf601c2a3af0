"""Block with attention and FFN in parallel on the same residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.stack import add_norm
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Dropout, Fold, Layer, Norm, Sub


@dataclass(frozen=True, kw_only=True)
class ParallelBlock(Layer):
    """x += attention(norm(x)) + ffn(ffn_norm(x)) (Wang & Komatsuzaki 2021, GPT-J).

    `shared_norm`: one norm feeds both (GPT-J, Phi); otherwise each has its own (GPT-NeoX).
    """

    kind: ClassVar[str] = "parallel_block"
    attention: Layer
    ffn: Layer
    norm: Norm
    shared_norm: bool = False
    dropout: float = 0.0

    def params(self, width: int) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {
            "attention_norm": Sub(self.norm, width),
            "attention": Sub(self.attention, width),
        }
        if not self.shared_norm:
            params |= {"ffn_norm": Sub(self.norm, width)}
        params |= {"ffn": Sub(self.ffn, width)}
        return params | {"dropout": Dropout(self.dropout)} if self.dropout else params

    def folds(self) -> tuple[Fold, ...]:
        fed = {"attention": self.attention.reads, "ffn": self.ffn.reads}
        if not all(fed.values()):
            return ()
        maps = {name: tuple(f"{name}.{n}" for n in reads) for name, reads in fed.items()}
        if self.shared_norm:
            return (Fold("attention_norm", maps["attention"] + maps["ffn"]),)
        return tuple(Fold(f"{name}_norm", consumers) for name, consumers in maps.items())

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, d: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        x, h = add_norm(p.attention_norm, x, d)
        d = p.attention(h, step) + p.ffn(h if self.shared_norm else p.ffn_norm(x))
        return x, p.dropout(d) if self.dropout else d
