"""Load-balancing loss for mixtures of experts (Fedus et al. 2021, arXiv 2101.03961)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from edgeformer.ops.fused import Ops
from edgeformer.ops.tensor import A


class HasOps(Protocol[A]):
    """What `load_balancing` reads of a model."""

    @property
    def ops(self) -> Ops[A]: ...


@contextlib.contextmanager
def load_balancing(model: HasOps[A]) -> Iterator[Callable[[], A]]:
    """Record the routing of a model's mixtures of experts inside the block; calling the value returns the loss, a scalar tensor.

    Example:
        with edgeformer.load_balancing(model) as balance:
            loss = cross_entropy(model(ids), targets) + 0.01 * balance()

    Args:
        model: a torch or MLX module of ours.

    The loss is E · Σᵢ fᵢ · Pᵢ over the E experts: fᵢ is the share of tokens routed to expert i (they sum to k for k chosen), Pᵢ
    the mean of its scores, over all tokens of all layers. It equals k if experts are chosen evenly. Padding is included.

    Raises (when the value is called):
        ValueError: no mixture of experts ran.
    """
    ops = model.ops
    before, ops.routings = ops.routings, []
    try:
        yield lambda: _loss(ops, ops.routings or [])
    finally:
        ops.routings = before


def _loss(ops: Ops[A], routings: list[tuple[A, A]]) -> A:
    if not routings:
        raise ValueError("no mixture of experts ran: the model has none, or wasn't called inside the block")
    shares, means = [], []
    tokens, experts = 0, routings[0][0].shape[-1]
    for scores, chosen in routings:
        hits = ops.cast(ops.equal(ops.expand_dims(chosen, 3), ops.arange(experts, chosen)), scores)
        shares.append(ops.sum(ops.sum(ops.sum(hits, 2), 1), 0))
        means.append(ops.sum(ops.sum(scores, 1), 0))
        tokens += scores.shape[0] * scores.shape[1]
    return ops.sum(_total(shares) * _total(means), 0) * (experts / tokens**2)


def _total(xs: list[A]) -> A:
    return sum(xs[1:], xs[0])
