"""Run the model on calibration text in torch, block by block, and collect statistics of each linear map's inputs.

What comes before the first block runs once; then one block runs at a time on the previous block's outputs. A method may change a
block before the text passes through it, so that later blocks see its errors: GPTQ does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import InputError, RuntimeUnavailable
from edgeformer.layers.stack import BlockStack, add_norm
from edgeformer.ops.handle import LayerHandle
from edgeformer.spec.task import Task
from edgeformer.weights.formats import Format, dequantize

if TYPE_CHECKING:
    import torch
    from torch import nn

_BATCH_TOKENS = 2048


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
    """A model's blocks, and the next block's inputs on the calibration text.

    One block is in memory at a time, in float32; of the embeddings, the rows that occur in the text.
    """

    def __init__(self, loaded: LoadedModel, ids: np.ndarray):
        torch = require_torch()
        from edgeformer.backends.torch.encoder_decoder import torch_model

        spec = loaded.spec
        if not isinstance(spec, BlockStack):
            raise InputError(f"calibration supports models with one stack of blocks; this is a {spec.kind}")
        self.torch, self.spec, self.weights = torch, spec, loaded.require_weights()
        with torch.device("meta"):
            self.model: Any = torch_model(spec)
        self.model.requires_grad_(False)
        found, places = np.unique(ids, return_inverse=True)
        ids = places.reshape(ids.shape).astype(np.int64)
        for name, child in self.model.named_children():
            if name == "embed":
                child.weight = torch.nn.Parameter(self._rows(found), requires_grad=False)
            elif name not in ("layers", "head"):
                self._fill(name, child)
        for name in [n for n, _ in self.model.named_parameters(recurse=False)]:
            value = torch.from_numpy(self._read(name))
            setattr(self.model, name, torch.nn.Parameter(value, requires_grad=False))
        self.model.fill_constants("cpu")
        batch = max(_BATCH_TOKENS // ids.shape[1], 1)
        self.inputs: list[tuple[Any, ...]] = []
        for start in range(0, len(ids), batch):
            self.inputs.append(self._first(torch.from_numpy(ids[start : start + batch])))

    def _read(self, name: str) -> np.ndarray:
        return np.array(self.weights[name], np.float32)

    def _rows(self, ids: np.ndarray) -> torch.Tensor:
        """Rows of the embeddings; a token is its row's number from here on."""
        return self.torch.from_numpy(np.asarray(self.weights["embed.weight"])[ids].astype(np.float32))

    def _fill(self, path: str, module: nn.Module) -> None:
        """Give a part of the model its weights."""
        module.to_empty(device="cpu")
        for part in module.modules():
            if isinstance(part, LayerHandle):
                part.fill_constants("cpu")  # type: ignore[operator]
        with self.torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(self.torch.from_numpy(self._read(f"{path}.{name}")))

    def _first(self, ids: torch.Tensor) -> tuple[Any, ...]:
        """The first block's arguments for these ids."""
        found: list[tuple[Any, ...]] = []

        def catch(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            found.append(arguments)
            raise _Reached

        hook = self.model.layers[0].register_forward_pre_hook(catch)
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
        through this one with its current weights, and the block leaves memory."""
        for i, block in enumerate(self.model.layers):
            self._fill(f"layers.{i}", block)
            yield f"layers.{i}", block
            with self.torch.no_grad():
                for n, arguments in enumerate(self.inputs):
                    self.inputs[n] = (*block(*arguments), *arguments[2:])
            block.to_empty(device="meta")

    def second_moments(self, block: nn.Module, paths: list[str], *, diagonals: bool = False) -> dict[str, torch.Tensor]:
        """Path below the block -> mean of x xᵀ over all inputs of the linear map at that path, float32 [inputs, inputs]; of a
        stack of maps, over the inputs of each one, [count, inputs, inputs], 0 for one that no token reached. Maps of the same
        input share one tensor. diagonals: of stacks, only these, [count, inputs]."""
        from edgeformer.backends.torch.module import Stacked

        torch = self.torch
        leaders = _leaders(block, paths)
        sums: dict[str, torch.Tensor] = {}
        counts: dict[str, torch.Tensor] = {}

        def add(path: str, index: int | None, x: torch.Tensor) -> None:
            module = block.get_submodule(path)
            rows, count = x.reshape(-1, x.shape[-1]).float(), 1 if index is None else len(module.weight)  # type: ignore[arg-type]
            short = diagonals and index is not None
            if path not in sums:
                sums[path] = torch.zeros(count, *([x.shape[-1]] * (1 if short else 2)))
                counts[path] = torch.zeros(count, *([1] * (1 if short else 2)))
            if short:
                sums[path][index] += rows.square().sum(0)
            else:
                sums[path][index or 0].addmm_(rows.T, rows)
            counts[path][index or 0] += len(rows)

        def hooked(path: str, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            add(path, None, arguments[0])

        hooks, watched = [], []
        for path in dict.fromkeys(leaders.values()):
            module = block.get_submodule(path)
            if isinstance(module, Stacked):
                module.observer = partial(add, path)
                watched.append(module)
            else:
                hooks.append(module.register_forward_pre_hook(partial(hooked, path)))
        try:
            with torch.no_grad():
                for arguments in self.inputs:
                    block(*arguments)
        finally:
            for hook in hooks:
                hook.remove()
            for module in watched:
                module.observer = None
        for path, total in sums.items():
            total /= counts[path].clamp(min=1)
            if not isinstance(block.get_submodule(path), Stacked):
                sums[path] = total[0]
        return {path: sums[leader] for path, leader in leaders.items() if leader in sums}

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

    def weight(self, name: str) -> np.ndarray:
        """A weight of the block that was yielded last, float32."""
        return self.model.get_parameter(name).numpy()

    def set(self, name: str, codes: np.ndarray, scales: np.ndarray, format: Format) -> None:
        """Replace a weight of the block that was yielded last by what its codes stand for; of a stack, one map at a time."""
        path, _, leaf = name.rpartition(".")
        target = getattr(self.model.get_submodule(path), leaf)
        stack = target if target.ndim == 3 else target[None]
        with self.torch.no_grad():
            for place, packed, steps in zip(
                stack,
                codes.reshape(len(stack), -1, codes.shape[-1]),
                scales.reshape(len(stack), -1, scales.shape[-1]),
                strict=True,
            ):
                place.copy_(self.torch.from_numpy(dequantize(packed, steps, format)))


def _leaders(block: Any, paths: list[str]) -> dict[str, str]:
    """Path -> the path below the block whose inputs stand for its own: the first of those with the same input."""
    first = {path: path for path in paths}
    for name, module in block.named_modules():
        for group in module.layer.same_input if isinstance(module, LayerHandle) else ():
            members = [p for p in (f"{name}.{part}" if name else part for part in group) if p in first]
            first |= dict.fromkeys(members, members[0]) if members else {}
    return first


Report = Callable[[str], None]
