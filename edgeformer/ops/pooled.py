"""Ops on whole sequences: what turns an encoder's hidden states into one vector per text.

Like all fused ops, each has a default body in primitives, which is its definition.
"""

from __future__ import annotations

from edgeformer.ops.primitives import Primitives
from edgeformer.ops.tensor import T


class Pooled(Primitives[T]):
    """Poolings of hidden states `[B, T, D]`, and the length of what they return."""

    def first_token(self, x: T) -> T:
        """The first position's row: [B, T, D] -> [B, D]."""
        return self.sum(self.take(self.permute(x, (1, 0, 2)), self.arange(1, x)), 0)

    def token_mean(self, x: T, mask: T) -> T:
        """The mean over real tokens, float32 [B, D]. x: [B, T, D]; mask: int64 [B, T], 0 where padded, else the weight."""
        states = self.f32(x)  # the sum over a long text overflows fp16
        weights = self.expand_dims(self.cast(mask, states), 2)
        return self.sum(states * weights, 1) / (self.sum(weights, 1) + 1e-9)

    def token_sum(self, x: T, mask: T) -> T:
        """The sum over real tokens, float32 [B, D]. x: [B, T, D]; mask: int64 [B, T], 0 where padded."""
        states = self.f32(x)
        return self.sum(states * self.expand_dims(self.cast(mask, states), 2), 1)

    def token_max(self, x: T, mask: T) -> T:
        """Each channel's maximum over real tokens, float32 [B, D]. x: [B, T, D]; mask: int64 [B, T], 0 where padded."""
        padded = self.expand_dims(self.where(self.boolean(mask), 0.0, -1e30), 1)
        return self.sum(self.topk(self.permute(self.f32(x), (0, 2, 1)) + padded, 1)[0], -1)

    def last_real_token(self, x: T, mask: T) -> T:
        """The last real token's row, float32 [B, D]. x: [B, T, D]; mask: int64 [B, T], 0 where padded."""
        last = self.equal(self.cumsum(mask), self.sum(mask, 1, keep=True))  # also true of padding after it
        return self.token_sum(x, self.cast(last, mask) * mask)

    def unit(self, x: T) -> T:
        """x / √(Σ x² + 1e-24) over the last axis."""
        return x * self.rsqrt(self.sum(x * x, -1, keep=True) + 1e-24)
