"""mlx-lm's `qwen2`: biases on q, k and v."""

from __future__ import annotations

from typing import Any

from edgeformer.exporters.mlx.types._common import llama_shaped, no_windows
from edgeformer.models._shape import need
from edgeformer.spec import Model


def config(spec: Model) -> dict[str, Any]:
    """The config of a spec.

    Raises:
        Unmapped: the spec doesn't fit this model type.
    """
    data, attentions, ffn = llama_shaped(spec)
    first = attentions[0]
    need(first.qk_norm is None, "queries and keys are normalised")
    need(first.bias and not first.output_bias, "biases are not on exactly q, k and v")
    need(not ffn.bias, "the feed-forward network has biases")
    need(first.head_dim * first.heads == data["hidden_size"], "mlx-lm's qwen2 needs head_dim = hidden_size / heads")
    no_windows(attentions, spec.context, "qwen2")
    return {"model_type": "qwen2", **data}
