"""The cache of a graph under construction."""

from __future__ import annotations

from typing import Any

from edgeformer.errors import ExportError
from edgeformer.exporters.onnx.functions import FunctionOps
from edgeformer.exporters.onnx.graph_ops import GraphTensor


class GraphStore:
    """The cache as graph inputs and outputs."""

    def __init__(self, ops: FunctionOps, past: dict[tuple[str, str], GraphTensor], inputs: dict[str, GraphTensor]):
        self.ops, self.past, self.present = ops, past, {}
        self.input_ids, self.attention_mask = inputs["input_ids"], inputs["attention_mask"]
        self.grows = False  # whether any layer joins past and new itself, so that no shared buffer can be bound
        self.shared: dict[str, Any] = {}
        """What a target computes once per step."""
        self.read: dict[tuple[str, str], GraphTensor] = {}
        """What is kept of the text that an encoder–decoder model read."""
        self.scales: dict[tuple[str, str], GraphTensor] = {}
        """What int8 caches are multiplied with, `[1, heads, 1, dim]`; empty for others."""

    def append(self, path: str, tensors: dict[str, GraphTensor]) -> tuple[GraphTensor, ...]:
        """Past and new joined along the sequence axis."""
        if self.scales:
            raise ExportError(f"an int8 cache needs GroupQueryAttention, and {path} can't be lowered to it here")
        self.grows = True
        for name, new in tensors.items():
            self.present[path, name] = self.ops.concat([self.past[path, name], new], 2)
        return tuple(self.present[path, name] for name in tensors)

    def once(self, path: str, make: Any) -> dict[str, Any]:
        """What the encoder's program made, as inputs."""
        return {name: x for (where, name), x in self.read.items() if where == path}
