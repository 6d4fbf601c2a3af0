"""Learned absolute positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgeformer.spec import Declaration, Layer, Table


@dataclass(frozen=True, kw_only=True)
class Learned(Layer):
    """One learned vector per position, added to the embedding (Gehring et al. 2017; BERT, GPT-2)."""

    kind: ClassVar[str] = "learned"
    count: int

    def params(self, width: int) -> dict[str, Declaration]:
        return {"table": Table(self.count, width)}

    def apply(self, ops: Any, p: Any, step: Any) -> Any:
        return p.table(step.positions)
