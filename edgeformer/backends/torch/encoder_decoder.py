"""Encoder–decoder models in PyTorch: encoder and decoder as one trainable module."""

from __future__ import annotations

import torch

from edgeformer.backends.torch.module import TorchModel
from edgeformer.errors import InputError
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.spec import Model


def torch_model(spec: Model) -> TorchModel:
    """Build a spec's module with freshly initialized weights."""
    return TorchEncoderDecoder(spec) if isinstance(spec, EncoderDecoder) else TorchModel(spec)


class TorchEncoderDecoder(TorchModel):
    """A complete encoder–decoder model; see `TorchModel`."""

    layer: EncoderDecoder  # pyright: ignore[reportIncompatibleVariableOverride]

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        keep: int = 0,
    ) -> torch.Tensor:
        """Logits [B, T, V] of `decoder_input_ids` int64 [B, T], after reading `input_ids` int64 [B, M].

        The masks are int64, 0 where padded; None without padding. keep: logits of the last `keep` positions only; 0 for all.

        Raises:
            InputError: `decoder_input_ids` is missing.
        """
        if decoder_input_ids is None:
            raise InputError(
                "an encoder-decoder model also needs decoder_input_ids: the target text, or its start token"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        written = torch.ones_like(decoder_input_ids) if decoder_attention_mask is None else decoder_attention_mask
        return self.layer.both(self.ops, self, (input_ids, mask), (decoder_input_ids, written), keep)
