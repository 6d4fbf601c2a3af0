"""Bidirectional encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.layers.head import Head
from edgeformer.layers.learned import Learned
from edgeformer.layers.mlm_head import MlmHead
from edgeformer.layers.pooling import Pooling
from edgeformer.layers.stack import BlockStack
from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step
from edgeformer.spec import Declaration, Dropout, Input, Layer, Linear, Norm, Sub, Table, Vector
from edgeformer.spec.task import Task


@dataclass(frozen=True, kw_only=True)
class Encoder(BlockStack):
    """embedding (+ positions + token types, normalised) -> blocks (Devlin et al. 2019, BERT).

    `pooler` is BERT's tanh(Linear(first token)); `pooling` adds a sentence embedding, `mlm` logits for masked tokens;
    `classifier`, which excludes them, replaces all outputs by a task's. `norm` is the final norm (pre-norm encoders),
    `embed_norm` the one after the embeddings. Embeddings whose width, `embed_width`, differs from the blocks' are projected by a
    linear map (Lan et al. 2019, ALBERT). `counts_padding`: positions count all slots including padding, as in BERT, instead of
    real tokens only (RoBERTa). `embed_scale` multiplies embeddings (Gemma).
    """

    kind: ClassVar[str] = "encoder"
    task: ClassVar[Task] = Task.FEATURE_EXTRACTION
    counts_padding: bool = True
    embed_scale: float = 1.0
    embed_norm: Norm | None = None
    embed_width: int | None = None
    positions: Layer | None = None
    token_types: int = 0
    pooler: bool = False
    pooling: Pooling | None = None
    mlm: MlmHead | None = None
    classifier: Head | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        held = {"pooler": self.pooler, "pooling": self.pooling, "mlm": self.mlm}
        others = [name for name, part in held.items() if part]
        self.require(self.classifier is None or not others, f"a classifier excludes {' and '.join(others)}")

    @property
    def padding_id(self) -> int | None:
        """The id whose positions transformers doesn't count, where the architecture depends on it (RoBERTa)."""
        if self.counts_padding or not isinstance(self.positions, Learned) or not self.positions.offset:
            return None
        return self.positions.offset - 1

    @property
    def embedding_width(self) -> int:
        return self.embed_width or self.width

    def params(self, width: int = 0) -> dict[str, Declaration]:
        narrow = self.embedding_width
        params: dict[str, Declaration] = {"embed": Table(self.vocab, narrow)}
        if self.positions is not None:
            params |= {"position_embed": Sub(self.positions, narrow)}
        if self.token_types:
            params |= {"type_embed": Table(self.token_types, narrow)}
        if self.embed_norm is not None:
            params |= {"embed_norm": Sub(self.embed_norm, narrow)}
        if self.embed_width is not None:
            params |= {"project_in": Linear(narrow, self.width, bias=True)}
        if self.dropout:
            params |= {"dropout": Dropout(self.dropout)}
        params |= self.stack_params(self.width)
        if self.pooler:
            params |= {"pooler": Linear(self.width, self.width, bias=True)}
        if self.mlm is not None:
            params |= {"mlm": Sub(self.mlm, self.width)}
            if not self.mlm.tied:
                params |= {"head": Linear(self.mlm.width, self.vocab)}
            if self.mlm.output_bias:
                params |= {"mlm_bias": Vector(self.vocab, fill=0.0)}
        if self.classifier is not None:
            params |= {"classifier": Sub(self.classifier, self.width)}
        return params | {"pooling": Sub(self.pooling, self.width)} if self.pooling else params

    def inputs(self) -> tuple[Input, ...]:
        shape = ("batch_size", "sequence_length")
        names = ["input_ids", "attention_mask"]
        if self.token_types > 1:  # with a single type there is no input: RoBERTa's tokenizers return none
            names.append("token_type_ids")
        return tuple(Input(name, shape) for name in names)

    def outputs(self) -> dict[str, tuple[str | int, ...]]:
        if self.classifier is not None:
            return self.classifier.outputs()
        outputs: dict[str, tuple[str | int, ...]] = {"last_hidden_state": ("batch_size", "sequence_length", self.width)}
        if self.pooler:
            outputs["pooler_output"] = ("batch_size", self.width)
        if self.pooling is not None:
            outputs["sentence_embedding"] = ("batch_size", self.pooling.size(self.width))
        if self.mlm is not None:
            outputs["logits"] = ("batch_size", "sequence_length", self.vocab)
        return outputs

    def apply(self, ops: Ops, p: LayerHandle, inputs: dict[str, Any], step: Step) -> dict[str, Any]:
        x = p.embed(inputs["input_ids"])
        if self.embed_scale != 1:
            x = x * self.embed_scale
        if self.token_types:
            types = ops.arange(1, x) if self.token_types == 1 else inputs["token_type_ids"]
            x = x + p.type_embed(types)
        if self.positions is not None:
            x = x + ops.cast(p.position_embed(step), x)
        if self.embed_norm is not None:
            x = p.embed_norm(x)
        if self.dropout:
            x = p.dropout(x)
        if self.embed_width is not None:
            x = p.project_in(x)
        x = self.run_stack(p, x, step)
        if self.classifier is not None:
            return p.classifier(x, inputs["attention_mask"])
        outputs = {"last_hidden_state": x}
        if self.pooler:
            outputs["pooler_output"] = ops.tanh(p.pooler(ops.first_token(x)))
        if self.pooling is not None:
            outputs["sentence_embedding"] = p.pooling(x, inputs["attention_mask"])
        if self.mlm is not None:
            y = p.mlm(x)
            y = p.embed.as_linear(y) if self.mlm.tied else p.head(y)
            outputs["logits"] = y + p.mlm_bias if self.mlm.output_bias else y
        return outputs
