"""Rotary position embedding with interleaved pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeformer.layers.rope import Rope


@dataclass(frozen=True, kw_only=True)
class RopeInterleaved(Rope):
    """Rotates pairs (2i, 2i + 1), as in the paper (Su et al. 2021, arXiv 2104.09864, section 3.2.2).

    Used by GPT-J, Cohere, GLM and DeepSeek. The same rotation as `Rope`, up to a permutation of channels.
    """

    kind: ClassVar[str] = "rope_interleaved"
    interleaved: ClassVar[bool] = True
