"""mlx-lm's `llama`: Llama, Mistral, and everything shaped like them without sliding windows."""

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
    # mlx-lm's llama reads layer_types only if some layer has no window; transformers' llama doesn't read it
    no_windows(attentions, spec.context, "llama")
    need(first.bias == first.output_bias, "q, k, v have biases and o has none")
    return {"model_type": "llama", "attention_bias": first.bias, "mlp_bias": ffn.bias, **data}
