"""Decoders that sentence-transformers makes embedders of: the body without its head, and without a KV cache."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgeformer.errors import ConfigError
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.encoder import Encoder
from edgeformer.spec import Model, tensors
from edgeformer.weights.binding import NameMap, stored_part


def body_of(spec: Decoder, where: str) -> Encoder:
    """The decoder's embedding, blocks and final norm, as a model that reads a text at once (Qwen3-Embedding; E5-Mistral).

    Masks stay causal; weights keep their canonical names, and the head's are left over.

    Raises:
        ConfigError: a prefix LM, or embeddings of another width than the blocks.
    """
    if spec.prefixed or spec.embed_width is not None:
        what = "prefix LMs" if spec.prefixed else "decoders whose embeddings have another width than their blocks"
        raise ConfigError(f"{where} makes this model an embedder, which edgeformer doesn't build of {what}")
    return Encoder(
        vocab=spec.vocab,
        width=spec.width,
        context=spec.context,
        init=spec.init,
        blocks=spec.blocks,
        order=spec.order,
        norm=spec.norm,
        counts_padding=False,
        embed_scale=spec.embed_scale,
        embed_norm=spec.embed_norm,
        positions=spec.positions,
        dropout=spec.dropout,
    )


def without_decoder_head(
    whole: Model, body: Model, names: NameMap, ignored: Mapping[str, str], tied: Mapping[str, str]
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """`ignored` and `tied` of `bind`, with the decoder's head ignored where only its body is built.

    Args:
        whole: the family's spec.
        body: the spec to be bound, which may be the same.
        names: the family's name map.
        ignored: regular expression of stored names -> why they are ignored.
        tied: stored names of the head -> the canonical tensor that they equal.
    """
    if body.task == whole.task:
        return ignored, tied
    only = tensors(whole).keys() - tensors(body).keys()
    stored = {*tied, *(stored_part(names, name).name for name in only)}
    reason = "the head, which an embedder doesn't have"
    return {**ignored, **{rf"(^|\.){re.escape(name)}$": reason for name in sorted(stored)}}, {}
