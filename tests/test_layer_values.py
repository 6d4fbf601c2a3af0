"""T1: numbers that make no sense are refused by the layer they are given to: no traceback, no constant that is not finite.

Oracle: building each kind from combinations of small numbers either works, tables included, or raises `SpecError`.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from edgeformer import discover
from edgeformer.errors import SpecError
from edgeformer.layers.rope import Rope, RopeScaling
from edgeformer.spec import Const, Layer
from edgeformer.spec.serialization import node_class

VALUES = {"int": (0, 1, 2, 3, 8), "float": (0.0, 1.0, -2.0, 8.0), "bool": (False, True)}
COMBINATIONS = 2000


def numeric(kind: str) -> list[dataclasses.Field] | None:
    """A kind's fields that are numbers; None where it needs others, too."""
    try:
        fields = dataclasses.fields(node_class(kind))
    except SpecError:
        return None  # a helper's file: no kind
    required = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    found = [f for f in fields if str(f.type) in VALUES]
    return found if found and required <= {f.name for f in found} else None


KINDS = [kind for kind in discover.names("edgeformer.layers") if numeric(kind)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_small_numbers(kind):
    made, fields, chance = 0, numeric(kind) or [], random.Random(0)
    for _ in range(COMBINATIONS):
        given = {f.name: chance.choice(VALUES[str(f.type)]) for f in fields}
        try:
            node = node_class(kind)(**given)
            if isinstance(node, RopeScaling):
                node = Rope(dim=8, scaling=node)
            constants = [d for d in node.params(8).values() if isinstance(d, Const)] if isinstance(node, Layer) else []
            for constant in constants:
                assert np.isfinite(constant.make()).all(), node
        except SpecError:
            continue
        made += 1
    assert made, "all were refused"
