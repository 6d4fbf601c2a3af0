"""One generic `mlx.nn.Module` built from a spec: for training, `nn.quantize` and inference.

Parameters have the spec's canonical names (`layers.0.attention.q.weight`), so `tree_flatten(model.parameters())` is a
checkpoint's state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from edgeformer.backends.mlx.ops import MlxOps
from edgeformer.backends.mlx.packing import pack
from edgeformer.backends.mlx.stacked import Stacked as StackedMaps
from edgeformer.backends.mlx.store import MlxStore
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import Step, begin
from edgeformer.spec import (
    Const,
    Declaration,
    Dropout,
    Init,
    Layer,
    Linear,
    Model,
    Stacked,
    Sub,
    Table,
    Vector,
    check,
    leaves,
)
from edgeformer.spec.task import Task


@dataclass(frozen=True)
class MlxStep(Step[mx.array]):
    """A step with an optional `start`, int32 [B] or [1]: if set, positions are consecutive from there."""

    start: mx.array | None = None


class _Dropout(nn.Dropout):
    def __init__(self, rate: float):
        super().__init__(rate)
        self.p = rate


class Module(nn.Module, LayerHandle):
    """A layer with its parameters; children are attributes with the names that the layer declares."""

    ops: MlxOps

    def __init__(self, layer: Layer, width: int, ops: MlxOps, path: str = ""):
        super().__init__()
        for name, value in (("layer", layer), ("ops", ops), ("path", path)):
            object.__setattr__(self, name, value)
        for name, declaration in layer.params(width).items():
            child = f"{path}.{name}" if path else name
            if isinstance(declaration, tuple):
                setattr(self, name, [Module(s.layer, s.width, ops, f"{child}.{i}") for i, s in enumerate(declaration)])
            elif isinstance(declaration, Const):  # kept out of the module's dict, so that it is not a parameter
                object.__setattr__(self, name, mx.array(declaration.make()))
            else:
                setattr(self, name, self._make(declaration, child))

    def _make(self, declaration: Declaration, path: str) -> object:
        match declaration:
            case Linear():
                return nn.Linear(declaration.inputs, declaration.outputs, declaration.bias)
            case Stacked():
                return StackedMaps(declaration.count, declaration.inputs, declaration.outputs)
            case Table():
                return nn.Embedding(declaration.rows, declaration.width)
            case Vector():
                return mx.full((declaration.size,), declaration.fill)
            case Dropout():
                return _Dropout(declaration.rate)
            case Sub():
                return Module(declaration.layer, declaration.width, self.ops, path)
        raise TypeError(declaration)

    def pack(self, *, evaluate: bool = True) -> None:
        """Pack linear maps that share an input into one matrix. For inference only: the parts are no longer modules.

        evaluate: evaluate layer by layer, so that there are never two copies of all weights.
        """
        for group in self.layer.same_input:
            maps = [self[name] for name in group if name in self]
            if len(maps) < len(group) or (packed := pack(maps)) is None:
                continue
            parent, rows = packed
            if evaluate:
                mx.eval(parent.parameters())
            for name, row in zip(group, rows, strict=True):
                del self[name]
                object.__setattr__(self, name, row)
            self["_".join(group)] = parent
        for child in self.children().values():
            for module in child if isinstance(child, list) else [child]:
                if isinstance(module, Module):
                    module.pack(evaluate=evaluate)


class MlxModel(Module):
    """A complete model. Decoders return logits `[B, T, V]`, encoders a dict of their outputs.

    Args:
        spec: the model; weights are initialized by its `init`.
        ops: the op vocabulary, with or without custom kernels.
    """

    layer: Model

    def __init__(self, spec: Model, ops: MlxOps | None = None):
        check(spec)
        super().__init__(spec, 0, ops or MlxOps())
        self.initialize(spec.init)

    def initialize(self, init: Init) -> None:
        """Initialize the weights: normal with `init.std` (see `spec.Init`), biases 0, norms 1."""
        found, depth = dict(leaves(self.layer)), self.layer.depth()
        for path, module in self.named_modules():
            if isinstance(module, (nn.Linear, StackedMaps, nn.Embedding)):
                std = init.deviation(path, found[path], depth)
                module.weight = mx.random.normal(module.weight.shape) * std
                if "bias" in module:
                    module.bias = mx.zeros(module.bias.shape)  # pyright: ignore

    def __call__(
        self,
        input_ids: mx.array,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        token_type_ids: mx.array | None = None,
        store: MlxStore | None = None,
        keep: int = 0,
        prefix_length: mx.array | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: integers [B, T].
            attention_mask: integers [B, S] over past and new tokens (all visible columns of a store); None without padding.
            position_ids: integers [B, T]; None counts the unmasked tokens.
            token_type_ids: integers [B, T], for encoders with segment embeddings; None means all 0.
            store: the KV cache, with its `start` (and `visible`) set, or None.
            keep: logits of the last `keep` positions only; 0 for all.
            prefix_length: integers [B], for prefix LMs: length of the prefix that all tokens attend to.
        """
        new, encoder = input_ids.shape[1], self.layer.task == Task.FEATURE_EXTRACTION
        if attention_mask is None:
            step = replace(self._whole(new, position_ids, store, keep), prefix=prefix_length)
        else:
            places = None if store is None or store.visible is None else store.start + mx.arange(new)
            made = begin(
                self.ops,
                attention_mask,
                position_ids,
                new=new,
                places=places,
                slots=self.layer.counts_padding,
                store=store,
                keep=keep,
                prefix=prefix_length,
            )
            step = MlxStep(**vars(made), start=made.positions[:, 0] if new == 1 else None)
        inputs = {"input_ids": input_ids}
        if encoder:
            inputs["attention_mask"] = mx.ones_like(input_ids) if attention_mask is None else attention_mask
            inputs["token_type_ids"] = mx.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        outputs = self.ops.enter(self, self.layer.apply, inputs, step)
        return outputs if encoder else outputs["logits"]

    def state_dict(self) -> dict[str, mx.array]:
        """Canonical name -> array of every parameter, as `edgeformer.save` accepts it."""
        return dict(_flat(self))

    def cache_dtype(self) -> mx.Dtype:
        """The dtype of activations and cache: that of the first norm or other vector parameter."""
        found = [x.dtype for _, x in _flat(self) if x.ndim == 1]
        return found[0] if found else mx.float32

    def _whole(self, new: int, position_ids: mx.array | None, store: MlxStore | None, keep: int) -> MlxStep:
        """The step for sequences without padding."""
        start = 0 if store is None else store.start
        fresh = isinstance(start, int) and start == 0
        if store is not None and store.visible is not None:
            keys = mx.arange(store.visible)[None]
            queries = (start + mx.arange(new))[None]
        else:
            assert isinstance(start, int)  # see `MlxStore`
            keys = mx.arange(start + new)[None]
            queries = keys if fresh else keys[:, start:]
        first = mx.array([start], mx.int32) if isinstance(start, int) else start.reshape(1)
        if position_ids is not None:
            return MlxStep(self.ops, queries, keys, position_ids, store=store, keep=keep)
        return MlxStep(self.ops, queries, keys, queries, store=store, keep=keep, start=first)


def _flat(model: nn.Module) -> list[tuple[str, mx.array]]:
    """Every parameter by name."""
    return tree_flatten(model.parameters())  # type: ignore[return-value]
