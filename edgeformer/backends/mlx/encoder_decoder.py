"""Encoder–decoder models in MLX: encoder and decoder as one trainable module."""

from __future__ import annotations

import mlx.core as mx

from edgeformer.backends.mlx.module import MlxModel
from edgeformer.backends.mlx.ops import MlxOps
from edgeformer.errors import InputError
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.spec import Model


def mlx_model(spec: Model, ops: MlxOps | None = None) -> MlxModel:
    """Build a spec's module with freshly initialized weights."""
    return MlxEncoderDecoder(spec, ops) if isinstance(spec, EncoderDecoder) else MlxModel(spec, ops)


class MlxEncoderDecoder(MlxModel):
    """A complete encoder–decoder model; see `MlxModel`."""

    layer: EncoderDecoder  # pyright: ignore[reportIncompatibleVariableOverride]

    def __call__(  # type: ignore[override]
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None = None,
        decoder_input_ids: mx.array | None = None,
        decoder_attention_mask: mx.array | None = None,
        keep: int = 0,
    ) -> mx.array:
        """Logits [B, T, V] of `decoder_input_ids` [B, T], after reading `input_ids` [B, M].

        The masks are integers, 0 where padded; None without padding. keep: logits of the last `keep` positions only; 0 for all.

        Raises:
            InputError: `decoder_input_ids` is missing.
        """
        if decoder_input_ids is None:
            raise InputError(
                "an encoder-decoder model also needs decoder_input_ids: the target text, or its start token"
            )
        mask = mx.ones_like(input_ids) if attention_mask is None else attention_mask
        written = mx.ones_like(decoder_input_ids) if decoder_attention_mask is None else decoder_attention_mask
        return self.layer.both(self.ops, self, (input_ids, mask), (decoder_input_ids, written), keep)
