"""Run the model on calibration text in torch, block by block, and collect statistics of each linear map's inputs.

The whole model runs once up to its first block; then one block runs at a time on the previous block's outputs. Text thus passes
through the blocks already quantized, and later blocks see their errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import InputError, RuntimeUnavailable
from edgeformer.layers.stack import BlockStack, add_norm
from edgeformer.spec import Linear, leaves
from edgeformer.spec.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

_BATCH_TOKENS = 4096


def calibration_windows(ids: np.ndarray, window: int, count: int, context: int, vocab: int) -> np.ndarray:
    """int64 [n, T]: `count` windows spread evenly over a text's token ids [tokens].

    Raises:
        InputError: too few tokens, or ids outside the vocabulary.
    """
    size = min(window, context)
    available = len(ids) // size
    if available < 1:
        raise InputError(
            f"the calibration text has {len(ids)} tokens, fewer than one window of {size}; use a longer text"
        )
    if ids.min() < 0 or ids.max() >= vocab:
        raise InputError(
            f"the calibration text has token ids up to {ids.max()}, but the vocabulary ends at {vocab - 1}"
        )
    chosen = np.linspace(0, available - 1, min(count, available)).round().astype(int)
    return np.stack([ids[i * size : (i + 1) * size] for i in chosen]).astype(np.int64)


def require_torch() -> Any:
    """Import the package torch.

    Raises:
        RuntimeUnavailable: it is not installed; the message has the install command.
    """
    try:
        import torch
    except ImportError as e:
        raise RuntimeUnavailable('calibration needs torch to run the model; pip install "edgeformer[torch]"') from e
    return torch


class _Reached(Exception):
    """Raised when the first block is reached, to stop the forward pass."""


class Calibration:
    """A model's blocks, and the next block's inputs on the calibration text."""

    def __init__(self, loaded: LoadedModel, ids: np.ndarray):
        torch = require_torch()
        from edgeformer.runtimes.torch import build_torch

        spec = loaded.spec
        if not isinstance(spec, BlockStack):
            raise InputError(f"calibration supports models with one stack of blocks; this is a {spec.kind}")
        self.torch, self.spec = torch, spec
        self.model = build_torch(loaded)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.linear = {path for path, leaf in leaves(spec) if isinstance(leaf, Linear)}
        batch = max(_BATCH_TOKENS // ids.shape[1], 1)
        self.inputs: list[tuple[Any, ...]] = []
        for start in range(0, len(ids), batch):
            self.inputs.append(self._first(torch.from_numpy(ids[start : start + batch])))

    def _first(self, ids: torch.Tensor) -> tuple[Any, ...]:
        """The first block's arguments for these ids."""
        found: list[tuple[Any, ...]] = []

        def catch(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            found.append(arguments)
            raise _Reached

        hook = self.model.layers[0].register_forward_pre_hook(catch)  # type: ignore[union-attr, index]
        try:
            with self.torch.no_grad():
                self.model(ids, self.torch.ones_like(ids) if self.spec.task == Task.FEATURE_EXTRACTION else None)
        except _Reached:
            pass
        finally:
            hook.remove()
        return found[0]

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Each block's path and module, with its inputs in `self.inputs`. Before the next block is yielded, the text passes
        through this one with its current weights."""
        for i, block in enumerate(self.model.layers):  # type: ignore[arg-type]
            yield f"layers.{i}", block
            with self.torch.no_grad():
                self.inputs = [(*block(*arguments), *arguments[2:]) for arguments in self.inputs]

    def second_moments(self, block: nn.Module, paths: list[str]) -> dict[str, torch.Tensor]:
        """Path below the block -> mean of x xᵀ over all inputs of the linear map at that path, float32 [inputs, inputs]."""
        torch = self.torch
        sums: dict[str, torch.Tensor] = {}
        counts: dict[str, int] = {}
        shared: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, int]] = {}

        def add(path: str, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            x = arguments[0]
            key = (x.data_ptr(), x.numel())
            if key not in shared:  # q, k and v share one input tensor
                rows = x.reshape(-1, x.shape[-1]).float()
                shared[key] = (x, rows.T @ rows, len(rows))  # x is kept so that its address isn't reused
            _, product, rows_count = shared[key]
            sums[path] = sums[path] + product if path in sums else product.clone()
            counts[path] = counts.get(path, 0) + rows_count

        hooks = [block.get_submodule(path).register_forward_pre_hook(partial(add, path)) for path in paths]
        try:
            with torch.no_grad():
                for arguments in self.inputs:
                    block(*arguments)
                    shared.clear()
        finally:
            for hook in hooks:
                hook.remove()
        return {path: sums[path] / counts[path] for path in paths if path in sums}

    def head_second_moments(self) -> torch.Tensor:
        """Second moments of the head's inputs, float32 [width, width]. Call it after the last block."""
        total, count = self.torch.zeros(()), 0
        with self.torch.no_grad():
            for x, d, *_ in self.inputs:
                y = add_norm(self.model.norm, x, d)[1] if self.spec.norm is not None else (x if d is None else x + d)
                if self.spec.embedding_width != self.spec.width:
                    y = self.model.project_out(y)  # type: ignore[operator]
                rows = y.reshape(-1, y.shape[-1])
                total = total + rows.T @ rows
                count += len(rows)
        return total / count

    def set(self, name: str, value: np.ndarray) -> None:
        """Replace a tensor, by its canonical name."""
        path, _, leaf = name.rpartition(".")
        target = self.model.get_submodule(path)
        with self.torch.no_grad():
            getattr(target, leaf).copy_(self.torch.from_numpy(np.ascontiguousarray(value)))

    def logits(self, ids: np.ndarray) -> torch.Tensor:
        """The model's logits with its current weights, float32 [n, T, V]."""
        with self.torch.inference_mode():
            return self.model(self.torch.from_numpy(ids))


Report = Callable[[str], None]
