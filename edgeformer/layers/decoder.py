"""Decoder-only language model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from edgeformer.layers.stack import BlockStack
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Declaration, Dropout, Input, Layer, Linear, Norm, Sizes, Sub, Table
from edgeformer.spec.task import Task


@dataclass(frozen=True, kw_only=True)
class Decoder(BlockStack):
    """embedding (+ positions) -> blocks -> norm -> head. `tied`: tied embeddings, the head shares the embedding's table.

    `context` is the maximum number of positions. `embed_scale` multiplies embeddings (Gemma: √width; Granite), `embed_norm`
    normalises them (BLOOM). If their width, `embed_width`, differs from the blocks', linear maps project them to the blocks'
    width and back before the head (OPT 350M). `logit_scale` multiplies logits (Cohere, Granite), `logit_softcap` soft-caps
    them to ±softcap (Gemma 2).
    """

    kind: ClassVar[str] = "decoder"
    task: ClassVar[Task] = Task.TEXT_GENERATION
    resizes: ClassVar[frozenset[str]] = BlockStack.resizes | {"tied"}
    positions: Layer | None = None
    embed_scale: float = 1.0
    embed_norm: Norm | None = None
    embed_width: int | None = None
    tied: bool = True
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(not (self.tied and self.head_bias), "a tied head has no bias")

    @property
    def head_is_embedding(self) -> bool:
        return self.tied

    @property
    def embedding_width(self) -> int:
        return self.embed_width or self.width

    def resized(self, sizes: Sizes, width: int) -> Self:
        changed = super().resized(sizes, width)
        return changed if sizes.tied is None else replace(changed, tied=sizes.tied)

    def params(self, width: int = 0) -> dict[str, Declaration]:
        narrow = self.embedding_width
        params: dict[str, Declaration] = {"embed": Table(self.vocab, narrow)}
        if self.embed_width is not None:
            params |= {"project_in": Linear(narrow, self.width), "project_out": Linear(self.width, narrow)}
        if self.embed_norm is not None:
            params |= {"embed_norm": Sub(self.embed_norm, self.width)}
        if self.positions is not None:
            params |= {"position_embed": Sub(self.positions, self.width)}
        if self.dropout:
            params |= {"dropout": Dropout(self.dropout)}
        params |= self.stack_params(self.width)
        return params if self.tied else params | {"head": Linear(narrow, self.vocab, self.head_bias)}

    def inputs(self) -> tuple[Input, ...]:
        prefix = (Input("prefix_length", ("batch_size",)),) if self.prefixed else ()
        return (
            Input("input_ids", ("batch_size", "sequence_length")),
            Input("attention_mask", ("batch_size", "total_sequence_length")),
            Input("position_ids", ("batch_size", "sequence_length")),
            *prefix,
        )

    def outputs(self) -> dict[str, tuple[str | int, ...]]:
        return {"logits": ("batch_size", "logits_length", self.vocab)}

    def apply(self, ops: Ops, p: LayerHandle, inputs: dict[str, Any], step: Step) -> dict[str, Any]:
        x = p.embed(inputs["input_ids"])
        if self.embed_scale != 1:
            x = x * self.embed_scale
        if self.embed_width is not None:
            x = p.project_in(x)
        if self.positions is not None:
            x = x + ops.cast(p.position_embed(step), x)
        if self.embed_norm is not None:
            x = p.embed_norm(x)
        if self.dropout:
            x = p.dropout(x)
        x = ops.last(self.run_stack(p, x, step), step.keep)
        return {"logits": ops.part("head", self.logits, ops, p, x)}

    def logits(self, ops: Ops, p: LayerHandle, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, vocab], through the head or the transposed embedding."""
        if self.embed_width is not None:
            x = p.project_out(x)
        y = p.embed.as_linear(x) if self.tied else p.head(x)
        if self.logit_scale != 1:
            y = y * self.logit_scale
        if self.logit_softcap is not None:
            y = ops.tanh(y * (1 / self.logit_softcap)) * self.logit_softcap
        return y
