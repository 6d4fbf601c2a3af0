"""The KV cache of a graph under construction."""

from __future__ import annotations

from typing import Any

from edgeformer.errors import ExportError
from edgeformer.exporters.onnx.functions import FunctionOps
from edgeformer.exporters.onnx.graph_ops import GraphTensor


class GraphStore:
    """The KV cache as graph inputs and outputs."""

    def __init__(self, ops: FunctionOps, past: dict[tuple[str, str], GraphTensor], inputs: dict[str, GraphTensor]):
        self.ops, self.past, self.present = ops, past, {}
        self.input_ids, self.attention_mask = inputs["input_ids"], inputs["attention_mask"]
        self.grows = False  # whether any layer concatenates past and new itself, which rules out a shared buffer
        self.shared: dict[str, Any] = {}
        """Tensors that a target computes once per step."""
        self.read: dict[tuple[str, str], GraphTensor] = {}
        """Cached cross-attention tensors of the encoder's output (encoder–decoder models)."""
        self.scales: dict[tuple[str, str], GraphTensor] = {}
        """Scales of an int8 cache, `[1, heads, 1, dim]`; empty for other dtypes."""
        self.windows: dict[str, int] = {}
        """Layer path -> window, of the layers whose cache holds the window only; empty if caches hold every position."""

    def append(self, path: str, tensors: dict[str, GraphTensor]) -> tuple[GraphTensor, ...]:
        """Past and new tensors, concatenated along the sequence axis."""
        if path in self.windows:
            raise ExportError(f"a windowed KV cache needs GroupQueryAttention, and {path} can't be lowered to it here")
        if self.scales:
            raise ExportError(f"an int8 KV cache needs GroupQueryAttention, and {path} can't be lowered to it here")
        self.grows = True
        for name, new in tensors.items():
            self.present[path, name] = self.ops.concat([self.past[path, name], new], 2)
        return tuple(self.present[path, name] for name in tensors)

    def once(self, path: str, make: Any) -> dict[str, Any]:
        """The encoder graph's outputs for this layer, as inputs."""
        return {name: x for (where, name), x in self.read.items() if where == path}
