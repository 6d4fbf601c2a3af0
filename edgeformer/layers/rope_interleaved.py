"""Rotary position embedding of neighbouring channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.rope import Rope


@dataclass(frozen=True, kw_only=True)
class RopeInterleaved(Rope):
    """Rotates pairs (2i, 2i + 1), as in the paper (Su et al. 2021, arXiv 2104.09864, section 3.2.2).

    GPT-J, Cohere, GLM and DeepSeek. The same rotation as `Rope`'s, of channels in another order.
    """

    kind: ClassVar[str] = "rope_interleaved"
    interleaved: ClassVar[bool] = True
