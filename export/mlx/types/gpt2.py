"""mlx-lm's `gpt2`: GPT-2's own config, where a tied head, tanh GELU and four times the width are taken for granted."""

from __future__ import annotations

from typing import Any

from edgeformer.models import gpt2
from edgeformer.models._shape import need
from edgeformer.spec import Model


def config(spec: Model) -> dict[str, Any]:
    """The config of a spec.

    Raises:
        Unmapped: it is none of this type.
    """
    data = gpt2.config(spec)
    act, inner, tied = (data.pop(key) for key in ("activation_function", "n_inner", "tie_word_embeddings"))
    need(tied, "positions are not learned, or the head is not the embedding")
    need(act == "gelu_new", f"mlx-lm's gpt2 computes gelu_new whatever the config says, this is {act}")
    need(inner == 4 * spec.width, "mlx-lm's gpt2 ignores n_inner: the inner width is four times n_embd")
    del data["architectures"]
    return data | {"n_ctx": spec.context, "activation_function": act}
