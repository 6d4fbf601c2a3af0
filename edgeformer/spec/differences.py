"""What differs between two specs, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeformer.spec.nodes import Model
from edgeformer.spec.serialization import to_json

_WITHOUT_EFFECT = ("init", "dropout", "pooling")
"""Fields that don't affect a trained model's outputs, or that transformers keeps elsewhere."""


_KIND_WEIGHT = 10
SHOWN = 3
"""Differences that a message lists."""


@dataclass(frozen=True)
class Difference:
    """A field that differs, as `field = wanted (found there)`. A part of another kind weighs more than a value."""

    text: str
    weight: int


def distance(differing: Sequence[Difference]) -> int:
    """How far two specs are apart."""
    return sum(d.weight for d in differing)


def listed(differing: Sequence[Difference]) -> str:
    """The first differences, and how many more there are."""
    rest = f" (and {len(differing) - SHOWN} more)" if len(differing) > SHOWN else ""
    return "; ".join(d.text for d in differing[:SHOWN]) + rest


def differences(wanted: Any, found: Any) -> list[Difference]:
    """What differs between two specs' JSON; the same difference in several blocks is said once."""
    out: dict[tuple[str, str, int], list[str]] = {}
    for path, ours, theirs in _unequal(wanted, found, ()):
        block = next((str(step) for step in path if isinstance(step, int)), "")
        field = ".".join("*" if isinstance(step, int) else step for step in path)
        weight = _KIND_WEIGHT if isinstance(ours, dict) or isinstance(theirs, dict) else 1
        out.setdefault((field, f"{_shown(ours)} ({_shown(theirs)} there)", weight), []).append(block)
    lines = []
    for (field, values, weight), blocks in out.items():
        which = blocks[0] if len(set(blocks)) == 1 else "*"
        lines.append(Difference(f"{field.replace('*', which, 1)} = {values}", weight))
    return lines


def _unequal(wanted: Any, found: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any, Any]]:
    if isinstance(wanted, dict) and isinstance(found, dict) and wanted.get("kind") == found.get("kind"):
        for key in wanted | found:
            yield from _unequal(wanted.get(key), found.get(key), (*path, key))
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
            yield from _unequal(a, b, (*path, i))
    elif wanted != found:
        yield path, wanted, found


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("kind", "..."))
    return f"{len(value)} items" if isinstance(value, list) else "none" if value is None else str(value)


def comparable(spec: Model) -> Any:
    """The spec's JSON, blocks written out, without fields that have no effect here."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {k: stripped(v) for k, v in value.items() if k not in _WITHOUT_EFFECT}
            if "head_dim" in kept and kept.get("scale") == kept["head_dim"] ** -0.5:
                kept["scale"] = None  # the default, said
            return kept
        if isinstance(value, list):
            return [
                item
                for v in value
                for item in (
                    [stripped(v["of"])] * v["repeat"] if isinstance(v, dict) and "repeat" in v else [stripped(v)]
                )
            ]
        return value

    return stripped(to_json(spec))
