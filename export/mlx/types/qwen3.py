"""mlx-lm's `qwen3`: QK norm, an RMSNorm on each query and key head."""

from __future__ import annotations

from typing import Any

from edgeformer.exporters.mlx.types._common import llama_shaped, no_windows
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models._shape import need
from edgeformer.spec import Model


def config(spec: Model) -> dict[str, Any]:
    """The config of a spec.

    Raises:
        Unmapped: the spec doesn't fit this model type.
    """
    data, attentions, ffn = llama_shaped(spec)
    first = attentions[0]
    need(
        first.qk_norm == RMSNorm(eps=data["rms_norm_eps"]), "queries and keys have no RMSNorm with the blocks' epsilon"
    )
    need(not first.bias and not first.output_bias, "mlx-lm's qwen3 has no attention biases")
    need(not ffn.bias, "the feed-forward network has biases")
    no_windows(attentions, spec.context, "qwen3")
    return {"model_type": "qwen3", **data}
