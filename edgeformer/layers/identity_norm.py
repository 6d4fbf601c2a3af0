"""No norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.spec import Norm


@dataclass(frozen=True, kw_only=True)
class IdentityNorm(Norm):
    """y = x: where a block has no norm (the first of ModernBERT, whose input is normalised already)."""

    kind: ClassVar[str] = "identity_norm"

    def apply(self, ops: Any, p: Any, x: Any) -> Any:
        return x

    def add(self, ops: Any, p: Any, x: Any, d: Any) -> tuple[Any, Any]:
        total = x + d
        return total, total
