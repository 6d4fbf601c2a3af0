"""Encoder–decoder model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.layers.tower import Tower
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step, begin
from edgeformer.ops.tensor import A, Size, T
from edgeformer.spec import Declaration, Input, Linear, Model, Sub, Table, Vector
from edgeformer.spec.task import Task


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder(Model):
    """A decoder that also attends to an encoder's output (Vaswani et al. 2017; Raffel et al. 2019, T5; Lewis et al. 2019, BART).

    Both share one embedding table, which is also the head if `tied`. `logit_scale` multiplies the head's input (T5), `head_bias`
    is added to the logits. `context` is the maximum number of positions of each side.

    Two programs share one parameter tree: `encode`, run once per input text, and `decode`.
    """

    kind: ClassVar[str] = "encoder_decoder"
    task: ClassVar[Task] = Task.TEXT2TEXT_GENERATION
    encoder: Tower
    decoder: Tower
    tied: bool = True
    head_bias: bool = False
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        self.require_positive(vocab=self.vocab, width=self.width, context=self.context)

    @property
    def head_is_embedding(self) -> bool:
        return self.tied

    def depth(self) -> int:
        return self.encoder.depth() + self.decoder.depth()

    def params(self, width: int = 0) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {
            "embed": Table(self.vocab, self.width),
            "encoder": Sub(self.encoder, self.width),
            "decoder": Sub(self.decoder, self.width),
        }
        if not self.tied:
            params |= {"head": Linear(self.width, self.vocab)}
        return params | {"head_bias": Vector(self.vocab, fill=0.0)} if self.head_bias else params

    def inputs(self) -> tuple[Input, ...]:
        """The inputs of `decode`, except the cross-attention tensors computed from the encoder's output."""
        return (
            Input("input_ids", ("batch_size", "sequence_length")),
            Input("attention_mask", ("batch_size", "total_sequence_length")),
            Input("encoder_attention_mask", ("batch_size", "encoder_sequence_length")),
        )

    def outputs(self) -> dict[str, tuple[str | int, ...]]:
        return {"logits": ("batch_size", "logits_length", self.vocab)}

    def encode(self, ops: Ops[T], p: LayerHandle, ids: T, mask: T, new: Size) -> T:
        """The encoder's output [B, M, D] for ids int64 [B, M] and mask int64 [B, M], 0 where padded. `new` is M."""
        step = begin(ops, mask, None, new=new, slots=True)
        return p.encoder(p.embed(ids), step)

    def decode(self, ops: Ops[T], p: LayerHandle, ids: T, step: Step) -> T:
        """Logits of ids int64 [B, T]; the step holds the encoder's output (`memory`), or a store with its K/V."""
        x = ops.last(p.decoder(p.embed(ids), step), step.keep)
        if self.logit_scale != 1:
            x = x * self.logit_scale
        y = p.embed.as_linear(x) if self.tied else p.head(x)
        return y + p.head_bias if self.head_bias else y

    def both(self, ops: Ops[A], p: LayerHandle, read: tuple[A, A], written: tuple[A, A], keep: int = 0) -> A:
        """Run `encode`, then `decode`, as in training; returns logits. read, written: (ids, mask), int64 [B, M] and [B, T]."""
        (ids, mask), (answer, answer_mask) = read, written
        memory = self.encode(ops, p, ids, mask, ids.shape[1])
        valid = ops.boolean(mask)
        step = begin(ops, answer_mask, new=answer.shape[1], keep=keep, memory=memory, memory_valid=valid)
        return self.decode(ops, p, answer, step)

    def apply(self, ops: Ops, p: LayerHandle, inputs: dict[str, Any], step: Step) -> dict[str, Any]:
        return {"logits": self.decode(ops, p, inputs["input_ids"], step)}
