"""Remarks on what a spec's sizes cost on each target, before anything is trained. One file of rules per target.

A remark states what was found, why it matters there, and what would be better. Remarks are never errors.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeformer import discover
from edgeformer.spec import Model


@dataclass(frozen=True)
class Remark:
    """About `target`: what was found, and what to do."""

    target: str
    text: str


def advise(spec: Model) -> list[Remark]:
    """The remarks of every target, in the order of their names."""
    found: list[Remark] = []
    for name, module in discover.each("edgeformer.advise.rules"):
        with discover.sparing("edgeformer.advise.rules", name):
            target = discover.declared(module, "TARGET", str)
            remarks = discover.function(module, "remarks")
            found += [Remark(target, text) for text in remarks(spec)]
    return found
