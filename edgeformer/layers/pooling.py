"""Sentence embedding by pooling, as in sentence-transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.ops import Ops
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.tensor import Tensor
from edgeformer.spec import Layer

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""By sentence-transformers' names, in the order in which its older versions concatenate several."""


@dataclass(frozen=True, kw_only=True)
class Pooling(Layer):
    """One vector of a text's tokens, or several side by side in the order of `mode`; of length 1 if `normalize`.

    cls: the first position; max: of each channel; mean; mean_sqrt_len_tokens: the sum divided by √n; weightedmean: the n-th real
    token weighs n (Muennighoff 2022, SGPT); lasttoken: the last real one. All but the first read real tokens only.

    Reimers & Gurevych 2019 (Sentence-BERT), section 3.
    """

    kind: ClassVar[str] = "pooling"
    mode: str | tuple[str, ...] = "mean"
    normalize: bool = True

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.modes if mode not in MODES]
        self.require(
            bool(self.modes) and not unknown and len({*self.modes}) == len(self.modes),
            f"mode must be one of {', '.join(MODES)}, or several different ones, got {self.mode!r}",
        )
        self.require(isinstance(self.mode, str) or len(self.mode) > 1, "a single mode is a name, not a list")

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes, as a tuple."""
        return (self.mode,) if isinstance(self.mode, str) else self.mode

    def size(self, width: int) -> int:
        """The length of the vector for hidden states of `width`."""
        return len(self.modes) * width

    def apply(self, ops: Ops, p: LayerHandle, x: Tensor, mask: Tensor) -> Tensor:
        """Pool x: [B, T, D] with mask: int64 [B, T], 0 where padded; returns [B, modes · D]."""
        found = [_pooled(ops, mode, x, mask) for mode in self.modes]
        y = found[0] if len(found) == 1 else ops.concat(found, -1)
        return ops.cast(ops.unit(y) if self.normalize else y, x)


def _pooled(ops: Ops, mode: str, x: Tensor, mask: Tensor) -> Tensor:
    """One mode's vector, float32 [B, D]."""
    match mode:
        case "cls":
            return ops.f32(ops.first_token(x))
        case "mean":
            return ops.token_mean(x, mask)
        case "mean_sqrt_len_tokens":
            return ops.token_sum(x, mask) * ops.rsqrt(ops.f32(ops.sum(mask, 1, keep=True)) + 1e-9)
        case "weightedmean":
            return ops.token_mean(x, ops.cumsum(mask) * mask)
        case "max":
            return ops.token_max(x, mask)
        case _:
            return ops.last_real_token(x, mask)
