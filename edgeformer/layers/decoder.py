"""Decoder-only language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.layers.learned import Learned
from edgeformer.layers.stack import BlockStack
from edgeformer.spec import Declaration, Dropout, Input, Linear, Sub, Table


@dataclass(frozen=True, kw_only=True)
class Decoder(BlockStack):
    """embedding (+ learned positions) -> blocks -> norm -> head. `tied`: the head is the embedding's table.

    `context` is the number of positions the model was made for.
    """

    kind: ClassVar[str] = "decoder"
    task: ClassVar[str] = "text-generation"
    positions: Learned | None = None
    tied: bool = True
    head_bias: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(not (self.tied and self.head_bias), "a tied head has no bias")

    def params(self, width: int = 0) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {"embed": Table(self.vocab, self.width)}
        if self.positions is not None:
            params |= {"position_embed": Sub(self.positions, self.width)}
        if self.dropout:
            params |= {"dropout": Dropout(self.dropout)}
        params |= self.stack_params()
        return params if self.tied else params | {"head": Linear(self.width, self.vocab, self.head_bias)}

    def inputs(self) -> tuple[Input, ...]:
        return (
            Input("input_ids", ("batch_size", "sequence_length")),
            Input("attention_mask", ("batch_size", "total_sequence_length")),
            Input("position_ids", ("batch_size", "sequence_length")),
        )

    def outputs(self) -> dict[str, tuple[str | int, ...]]:
        return {"logits": ("batch_size", "logits_length", self.vocab)}

    def apply(self, ops: Any, p: Any, inputs: dict[str, Any], step: Any) -> dict[str, Any]:
        x = p.embed(inputs["input_ids"])
        if self.positions is not None:
            x = x + p.position_embed(step)
        if self.dropout:
            x = p.dropout(x)
        x = ops.last(self.run_stack(p, x, step), step.keep)
        return {"logits": self.logits(p, x)}

    def logits(self, p: Any, x: Any) -> Any:
        """[B, T, width] -> [B, T, vocab], by the head or the embedding's transpose."""
        return p.embed.as_linear(x) if self.tied else p.head(x)
