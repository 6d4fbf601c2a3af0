"""Time breakdown: a runtime's own profile of a prefill and of decode steps, aggregated by block."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeformer.inference.profile import BLOCKS, Operation
from edgeformer.inference.runtime import Session
from edgeformer.spec.task import Task

STEPS, LISTED = 16, 12
"""Number of decode steps profiled, and of operations listed by name."""


def profiled(session: Session, prompt: np.ndarray, depth: int) -> dict[str, Any]:
    """Shares of time by block and by operation, of one prefill and of decode steps; empty if the runtime has no profiler, and for
    encoder–decoder models.

    prompt: int64 [B, depth + P].
    """
    if session.spec.task == Task.TEXT2TEXT_GENERATION:
        return {}
    if session.spec.task == Task.FEATURE_EXTRACTION:
        inputs = {"input_ids": prompt, "attention_mask": np.ones_like(prompt), "token_type_ids": np.zeros_like(prompt)}
        found = session.profile(lambda: void(session.encode(inputs)))
        return {} if found is None else {"prefill": folded(found)}

    def fill() -> None:
        session.reset()
        if depth:
            session.forward(prompt[:, :depth])

    def prefill() -> None:
        session.forward(prompt[:, depth:])

    def fill_and_prefill() -> None:
        fill()
        prefill()

    first = session.profile(prefill, fill)
    if first is None:
        return {}
    steps, token = min(STEPS, session.capacity - prompt.shape[1]), prompt[:, -1:]

    def decode() -> None:
        for _ in range(steps):
            session.forward(token)

    made = {"prefill": folded(first)}
    if steps > 0:
        made["decode"] = folded(session.profile(decode, fill_and_prefill) or [])
    return made


def void(_: object) -> None:
    """Discard a call's result."""


def folded(operations: list[Operation]) -> dict[str, Any]:
    """Shares of total time by block (they add up to 1), and the most expensive operations."""
    total = sum(op.ns for op in operations) or 1
    blocks = {block: sum(op.ns for op in operations if op.block == block) / total for block in BLOCKS}
    most = sorted(operations, key=lambda op: -op.ns)[:LISTED]
    listed = [{"block": op.block, "op": op.name, "share": op.ns / total, "count": op.count} for op in most]
    return {"blocks": blocks, "operations": listed}
