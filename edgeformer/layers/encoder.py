"""Bidirectional encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.layers.learned import Learned
from edgeformer.layers.pooling import Pooling, first_token
from edgeformer.layers.stack import BlockStack
from edgeformer.spec import Declaration, Dropout, Input, Linear, Norm, Sub, Table


@dataclass(frozen=True, kw_only=True)
class Encoder(BlockStack):
    """embedding (+ positions + token types, normalised) -> blocks (Devlin et al. 2019, BERT).

    `pooler` is BERT's tanh(Linear(first token)); `pooling` gives a sentence embedding. `norm` is a final norm (pre-norm
    encoders), `embed_norm` the one after the embeddings.
    """

    kind: ClassVar[str] = "encoder"
    task: ClassVar[str] = "feature-extraction"
    embed_norm: Norm | None = None
    positions: Learned | None = None
    token_types: int = 0
    pooler: bool = False
    pooling: Pooling | None = None
    dropout: float = 0.0

    def params(self, width: int = 0) -> dict[str, Declaration]:
        params: dict[str, Declaration] = {"embed": Table(self.vocab, self.width)}
        if self.positions is not None:
            params |= {"position_embed": Sub(self.positions, self.width)}
        if self.token_types:
            params |= {"type_embed": Table(self.token_types, self.width)}
        if self.embed_norm is not None:
            params |= {"embed_norm": Sub(self.embed_norm, self.width)}
        if self.dropout:
            params |= {"dropout": Dropout(self.dropout)}
        params |= self.stack_params()
        if self.pooler:
            params |= {"pooler": Linear(self.width, self.width, bias=True)}
        return params | {"pooling": Sub(self.pooling, self.width)} if self.pooling else params

    def inputs(self) -> tuple[Input, ...]:
        shape = ("batch_size", "sequence_length")
        names = (
            ("input_ids", "attention_mask", "token_type_ids") if self.token_types else ("input_ids", "attention_mask")
        )
        return tuple(Input(name, shape) for name in names)

    def outputs(self) -> dict[str, tuple[str | int, ...]]:
        outputs: dict[str, tuple[str | int, ...]] = {"last_hidden_state": ("batch_size", "sequence_length", self.width)}
        if self.pooler:
            outputs["pooler_output"] = ("batch_size", self.width)
        if self.pooling is not None:
            outputs["sentence_embedding"] = ("batch_size", self.width)
        return outputs

    def apply(self, ops: Any, p: Any, inputs: dict[str, Any], step: Any) -> dict[str, Any]:
        x = p.embed(inputs["input_ids"])
        if self.token_types:
            x = x + p.type_embed(inputs["token_type_ids"])
        if self.positions is not None:
            x = x + p.position_embed(step)
        if self.embed_norm is not None:
            x = p.embed_norm(x)
        if self.dropout:
            x = p.dropout(x)
        x = self.run_stack(p, x, step)
        outputs = {"last_hidden_state": x}
        if self.pooler:
            outputs["pooler_output"] = ops.tanh(p.pooler(first_token(ops, x)))
        if self.pooling is not None:
            outputs["sentence_embedding"] = p.pooling(x, inputs["attention_mask"])
        return outputs
