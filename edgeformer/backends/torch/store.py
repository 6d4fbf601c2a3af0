"""A fixed-size KV cache for the PyTorch back end, written in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from edgeformer.spec import layers

if TYPE_CHECKING:
    from edgeformer.backends.torch.module import TorchModel


class FixedStore:
    """A KV cache of fixed capacity, written in place: one buffer `[batch, heads, capacity, dim]` per cached tensor.

    `place` sets the slots of the next step's tokens. `whole`: layers see the full buffer (static shapes, for torch.compile; the
    mask hides unfilled slots), otherwise its filled part.
    """

    def __init__(self, model: TorchModel, batch: int, capacity: int, *, whole: bool = False):
        parameter = next(model.parameters())
        self.whole, self.end = whole, 0
        self.slots = torch.zeros(0, dtype=torch.int64)
        self.buffers = {
            (path, name): torch.zeros(batch, heads, capacity, dim, dtype=parameter.dtype, device=parameter.device)
            for path, layer, _ in layers(model.layer)
            for name, (heads, dim) in layer.cache().items()
        }

    def place(self, slots: torch.Tensor, end: int) -> None:
        """Set the slots (int64 [T]) of the next step's tokens, and `end`, one past the last of them."""
        self.slots, self.end = slots, end

    def length(self) -> int:
        """Tokens in the cache before this step."""
        if self.whole:
            raise ValueError("a FixedStore with whole=True needs an attention_mask over its full capacity")
        return self.end - len(self.slots)

    def append(self, path: str, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Write the new tensors to their slots; returns the buffers."""
        full = []
        for name, new in tensors.items():
            buffer = self.buffers[path, name]
            buffer.index_copy_(2, self.slots, new)
            full.append(buffer if self.whole else buffer[:, :, : self.end])
        return tuple(full)

    def once(self, path: str, make: Callable) -> dict[str, torch.Tensor]:
        """Not implemented: this store doesn't support encoder–decoder models."""
        raise NotImplementedError
