"""Who is first: verified rows of a shape by their speed. Differences within the noise are ties, and ties share a rank."""

from __future__ import annotations

import statistics

from edgeformer.measure.noise import Noise
from edgeformer.measure.row import Row


def speed(row: Row) -> float:
    """What rows are ranked by: the median decode step, of encoders the call; ns, less is better."""
    return statistics.median(row.ranking_ns())


def ranks(rows: list[Row], noise: Noise | None) -> dict[int, int]:
    """id(row) -> rank, of the rows of a shape that take part.

    A row ties with the fastest row of its rank if it is no further from it than a row is from itself. Servers are ranked among
    servers: their times hold what lies between them and their clients.
    """
    places: dict[int, int] = {}
    for served in (False, True):
        leader, rank = None, 0
        for position, row in enumerate(sorted((r for r in rows if r.ranked and r.served == served), key=speed), 1):
            if leader is None or noise is None or not noise.ties(speed(row), leader):
                leader, rank = speed(row), position
            places[id(row)] = rank
    return places
