"""Ranks a shape's verified rows by speed. Differences within the noise are ties, and ties share a rank."""

from __future__ import annotations

import statistics

from edgeformer.measure.noise import Noise
from edgeformer.measure.row import Row


def speed(row: Row) -> float:
    """The ranking metric, in ns, less is better: the median decode step, or the median call of an encoder."""
    return statistics.median(row.ranking_ns())


def ranks(rows: list[Row], noise: Noise | None) -> dict[int, int]:
    """Map id(row) to rank, for the rows of a shape that are ranked.

    A row ties with the fastest row of its rank if they differ by no more than the noise. Servers are ranked separately: their
    times include the connection between server and client.
    """
    places: dict[int, int] = {}
    for served in (False, True):
        leader, rank = None, 0
        for position, row in enumerate(sorted((r for r in rows if r.ranked and r.served == served), key=speed), 1):
            if leader is None or noise is None or not noise.ties(speed(row), leader):
                leader, rank = speed(row), position
            places[id(row)] = rank
    return places
