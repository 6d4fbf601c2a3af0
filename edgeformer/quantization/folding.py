"""Sites where a model's channels can be rescaled: every layer's `folds`, resolved to canonical tensor names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeformer.spec import Fold, Layer, Linear, Model, Norm, Vector, layers, tensor_name


@dataclass(frozen=True)
class Site:
    """A layer's `Fold`: `source`, the tensors that produce the channels; `consumers`, the weights that read them."""

    layer: str
    fold: Fold
    norm: Norm | None
    source: tuple[str, ...]
    consumers: tuple[str, ...]

    @property
    def linear(self) -> bool:
        """Whether a linear map produces the channels (otherwise a norm)."""
        return self.norm is None

    def spread(self, scale: np.ndarray) -> np.ndarray:
        """Expand one scale per source channel to one per consumer channel."""
        if self.fold.repeat == 1:
            return scale
        return np.repeat(scale.reshape(-1, 1, self.fold.block), self.fold.repeat, axis=1).reshape(-1)

    def reduced(self, sizes: np.ndarray) -> np.ndarray:
        """Reduce one size per consumer channel to one per source channel: the mean of those that share it."""
        if self.fold.repeat == 1:
            return sizes
        return sizes.reshape(-1, self.fold.repeat, self.fold.block).mean(1).reshape(-1)

    def divided(self, tensors: dict[str, np.ndarray], scale: np.ndarray) -> dict[str, np.ndarray]:
        """The source's tensors, changed so that its outputs are divided by `scale`."""
        if self.norm is not None:
            prefix = f"{self.layer}.{self.fold.source}." if self.layer else f"{self.fold.source}."
            short = self.norm.divided({name.removeprefix(prefix): x for name, x in tensors.items()}, scale)
            return {prefix + name: x for name, x in short.items()}
        return {name: x / (scale[:, None] if x.ndim == 2 else scale) for name, x in tensors.items()}


def sites(spec: Model) -> list[Site]:
    """Every site in dataflow order: a block's own before those inside its children."""
    found = []
    for path, layer, width in layers(spec):
        for fold in layer.folds():
            declared = _below(layer, width, fold.source)
            consumers = tuple(_join(path, f"{name}.weight") for name in fold.consumers)
            if isinstance(declared, Linear):
                names = tuple(tensor_name(_join(path, fold.source), key) for key in declared.tensors())
                found.append(Site(path, fold, None, names, consumers))
            elif isinstance(declared, Norm):
                vectors = [n for n, d in declared.params(width).items() if isinstance(d, Vector)]
                if vectors:  # a norm without weights can't absorb a scale
                    names = tuple(_join(path, f"{fold.source}.{n}") for n in vectors)
                    found.append(Site(path, fold, declared, names, consumers))
    return found


def _below(layer: Layer, width: int, name: str) -> Any:
    declaration = layer.params(width)[name]
    return declaration if isinstance(declaration, Linear) else getattr(declaration, "layer", None)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
