"""The PyTorch back end: one generic `nn.Module` built from a spec, for training, compiling and sharding.

The state dict's keys are the spec's canonical names (`layers.0.attention.q.weight`), blocks are `model.layers[i]`, and
`torch.compile(model, fullgraph=True)` traces the model without graph breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgeformer.backends.torch.store import FixedStore
from edgeformer.ops.eager import EagerOps, elementwise
from edgeformer.ops.handle import LayerHandle
from edgeformer.ops.step import GrowingStore, Step, begin
from edgeformer.spec import (
    Const,
    Declaration,
    Dropout,
    Init,
    Layer,
    Linear,
    Model,
    Sub,
    Table,
    Vector,
    check,
    leaves,
)
from edgeformer.spec import Stacked as StackedMaps
from edgeformer.spec.task import Task


class TorchOps(EagerOps[torch.Tensor]):
    """The op vocabulary on torch tensors."""

    rsqrt = elementwise(torch.rsqrt)
    exp = elementwise(torch.exp)
    sin = elementwise(torch.sin)
    cos = elementwise(torch.cos)
    tanh = elementwise(torch.tanh)
    sigmoid = elementwise(torch.sigmoid)
    erf = elementwise(torch.erf)
    relu = elementwise(torch.relu)
    act_silu = elementwise(F.silu)
    act_gelu = elementwise(F.gelu)

    def permute(self, x, axes):
        return x.permute(*axes)

    def expand_dims(self, x, axis):
        return x.unsqueeze(axis)

    def concat(self, xs, axis):
        return torch.cat(list(xs), axis)

    def split(self, x, sizes, axis):
        return x.split(list(sizes), axis)

    def repeat_heads(self, x, count):
        return x.repeat_interleave(count, 1)

    def mean(self, x):
        return x.mean(-1, keepdim=True)

    def sum(self, x, axis, *, keep=False):
        return x.sum(axis, keepdim=keep)

    def softmax(self, x):
        return x.softmax(-1)

    def topk(self, x, count):
        values, ids = x.topk(count, -1)
        return values, ids

    def where(self, condition, a, b):
        return torch.where(condition, a, b).to(torch.float32)

    def clip(self, x, low, high):
        return x.clamp(low, high)

    def arange(self, count, like):
        return torch.arange(count, device=like.device)

    def cast(self, x, like):
        return x.to(like.dtype)

    def f32(self, x):
        return x if x.dtype == torch.float64 else x.float()

    # fused ops that torch provides

    def act_gelu_tanh(self, x):
        return F.gelu(x, approximate="tanh")

    def layer_norm(self, x, weight, bias, *, eps):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def add_layer_norm(self, x, d, weight, bias, *, eps):
        total = x + d
        return total, self.layer_norm(total, weight, bias, eps=eps)

    def moe(self, x, weights, chosen, gate: Stacked, up: Stacked, down: Stacked, *, act, count):
        """Computes only the experts chosen by some token; all of them under torch.compile, where that is unknown."""
        if torch.compiler.is_compiling():
            return super().moe(x, weights, chosen, gate, up, down, act=act, count=count)
        flat, shares, picks = x.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1)
        total = torch.zeros_like(flat)
        for expert in picks.unique().tolist():
            rows, place = (picks == expert).nonzero(as_tuple=True)
            h = flat[rows]
            y = self.activate(act, gate.one(expert, h)) * up.one(expert, h)
            total = total.index_add(0, rows, down.one(expert, y) * shares[rows, place, None])
        return total.view_as(x)

    def mask(self, spec, queries, keys, valid, prefix=None):
        if valid is None and queries is keys and spec.plain:
            return "causal"  # a whole unpadded sequence: the kernel needs no mask tensor
        return super().mask(spec, queries, keys, valid, prefix)

    def additive_mask(self, mask, scores):
        return self._causal(scores) if isinstance(mask, str) else mask

    def attention(self, q, k, v, mask, bias, *, groups, scale, softcap=None, sinks=None, dropout=None):
        causal = isinstance(mask, str)
        if softcap is not None or sinks is not None:
            mask = self.additive_mask(mask, q)
            return super().attention(
                q, k, v, mask, bias, groups=groups, scale=scale, softcap=softcap, sinks=sinks, dropout=dropout
            )
        if causal and bias is not None:
            mask, causal = self._causal(q), False
        added = mask if bias is None else bias if mask is None else mask + bias
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if causal else None if added is None else added.to(q.dtype),
            is_causal=causal,
            dropout_p=dropout.p if dropout is not None and dropout.training else 0.0,
            scale=scale,
            enable_gqa=groups > 1,
        )

    def _causal(self, q: torch.Tensor) -> torch.Tensor:
        size = q.shape[2]
        hidden = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
        return torch.where(hidden, -1e9, 0.0)[None, None]


class _Linear(nn.Linear):
    """The module of a `Linear`."""


class _Table(nn.Embedding):
    def as_linear(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


class Stacked(nn.Module):
    """The module of a `Stacked`."""

    observer: Callable[[int, torch.Tensor], None] | None = None
    """Called with a map's number and its inputs [n, inputs], for calibration."""

    def __init__(self, count: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, outputs, inputs))

    def one(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """[n, inputs] -> [n, outputs] by the map with this number."""
        if self.observer is not None:
            self.observer(index, x)
        return x @ self.weight[index].T

    def each(self, x: torch.Tensor) -> torch.Tensor:
        """[B, count or 1, T, inputs] -> [B, count, T, outputs]."""
        if self.observer is not None:
            for index in range(len(self.weight)):
                self.observer(index, x[:, index if x.shape[1] > 1 else 0].flatten(0, 1))
        return x @ self.weight.mT


class Module(nn.Module, LayerHandle):
    """A layer with its parameters as an `nn.Module`; children are attributes with the names that the layer declares."""

    ops: TorchOps

    def __init__(self, layer: Layer, width: int, ops: TorchOps, path: str = ""):
        super().__init__()
        self.layer, self.width, self.ops, self.path = layer, width, ops, path
        self._constants: list[str] = []
        for name, declaration in layer.params(width).items():
            child = f"{path}.{name}" if path else name
            if isinstance(declaration, tuple):
                subs = (Module(s.layer, s.width, ops, f"{child}.{i}") for i, s in enumerate(declaration))
                setattr(self, name, nn.ModuleList(subs))
            elif isinstance(declaration, Const):
                setattr(self, name, torch.as_tensor(declaration.make()))
                self._constants.append(name)
            else:
                setattr(self, name, self._make(declaration, child))

    def _make(self, declaration: Declaration, path: str) -> nn.Module | nn.Parameter:
        match declaration:
            case Linear():
                return _Linear(declaration.inputs, declaration.outputs, declaration.bias)
            case StackedMaps():
                return Stacked(declaration.count, declaration.inputs, declaration.outputs)
            case Table():
                return _Table(declaration.rows, declaration.width)
            case Vector():
                return nn.Parameter(torch.full((declaration.size,), declaration.fill))
            case Dropout():
                return nn.Dropout(declaration.rate)
            case Sub():
                return Module(declaration.layer, declaration.width, self.ops, path)
        raise TypeError(declaration)

    def fill_constants(self, device: str | torch.device) -> None:
        """Recompute the constants on a device."""
        declarations = self.layer.params(self.width)
        for name in self._constants:
            with torch.device("cpu"):
                setattr(self, name, torch.as_tensor(declarations[name].make()).to(device))  # type: ignore[union-attr]

    def forward(self, *inputs: object) -> Any:
        return self.ops.enter(self, self.layer.apply, *inputs)

    def _apply(self, fn: Callable, recurse: bool = True) -> Module:
        super()._apply(fn, recurse)
        for (
            name
        ) in self._constants:  # constants follow the device but keep their dtype: RoPE angles in bf16 would be wrong
            old = getattr(self, name)
            if old.is_floating_point():
                moved = fn(old)
                setattr(self, name, moved if moved.dtype == old.dtype else old.to(moved.device))
            else:
                setattr(self, name, fn(old))
        return self


class TorchModel(Module):
    """A complete model. Decoders return logits `[B, T, V]`, encoders a dict of their outputs."""

    layer: Model

    def __init__(self, spec: Model):
        check(spec)
        super().__init__(spec, 0, TorchOps())
        self.initialize(spec.init)

    @torch.no_grad()
    def initialize(self, init: Init) -> None:
        """Initialize the weights: normal with `init.std` (see `spec.Init`), biases 0, norms 1."""
        found, depth = dict(leaves(self.layer)), self.layer.depth()
        for path, module in self.named_modules():
            if isinstance(module, (_Linear, Stacked, _Table)):
                nn.init.normal_(module.weight, std=init.deviation(path, found[path], depth))
            if isinstance(module, _Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        store: GrowingStore | FixedStore | None = None,
        keep: int = 0,
        prefix_length: torch.Tensor | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, S] over past and new tokens; None without padding.
            position_ids: int64 [B, T]; None counts the unmasked tokens.
            token_type_ids: int64 [B, T], for encoders with segment embeddings; None means all 0.
            store: the KV cache (`GrowingStore`, `FixedStore`), or None to train or score without one.
            keep: logits of the last `keep` positions only; 0 for all.
            prefix_length: int64 [B], for prefix LMs: length of the prefix that all tokens attend to.
        """
        device, new = input_ids.device, input_ids.shape[1]
        encoder = self.layer.task == Task.FEATURE_EXTRACTION
        if attention_mask is None:
            past = 0 if store is None else store.length()
            keys = torch.arange(past + new, device=device)[None]
            queries = keys[:, past:] if past else keys
            positions = queries if position_ids is None else position_ids
            step = Step(self.ops, queries, keys, positions, store=store, keep=keep, prefix=prefix_length)
        else:
            places = store.slots if isinstance(store, FixedStore) and store.whole else None
            step = begin(
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
        inputs = {"input_ids": input_ids}
        if encoder:
            inputs["attention_mask"] = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            inputs["token_type_ids"] = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        outputs = self.ops.enter(self, self.layer.apply, inputs, step)
        return outputs if encoder else outputs["logits"]

    def materialize(self, device: str | torch.device) -> TorchModel:
        """Allocate the parameters of a model built on the meta device, without setting them; returns the model."""
        self.to_empty(device=device)
        for module in self.modules():
            if isinstance(module, Module):
                module.fill_constants(device)
        return self

    def cache(self, past: dict | None = None) -> GrowingStore:
        """A KV cache for this model; one step's `store.present` is the next step's `past`."""
        return GrowingStore(self.ops, past)
