"""mlx-lm's `gpt2`: GPT-2's own config, with a tied head, tanh GELU and an inner width of four times n_embd hard-coded."""

from __future__ import annotations

from typing import Any

from edgeformer.models import gpt2
from edgeformer.models._shape import need
from edgeformer.spec import Model


def config(spec: Model) -> dict[str, Any]:
    """The config of a spec.

    Raises:
        Unmapped: the spec doesn't fit this model type.
    """
    data = gpt2.config(spec)
    act, inner, tied = (data.pop(key) for key in ("activation_function", "n_inner", "tie_word_embeddings"))
    need(tied, "the head is not tied to the embedding")
    need(act == "gelu_new", f"mlx-lm's gpt2 always computes gelu_new; this spec has {act}")
    need(inner == 4 * spec.width, "mlx-lm's gpt2 ignores n_inner: its inner width is always four times n_embd")
    del data["architectures"]
    return data | {"n_ctx": spec.context, "activation_function": act}
