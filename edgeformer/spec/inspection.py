"""Prints a spec as text."""

from __future__ import annotations

import dataclasses

from edgeformer.spec import Layer, Model


def tree(spec: Model) -> list[str]:
    """The spec as indented lines; runs of equal blocks are merged into one."""
    lines: list[str] = []

    def describe(layer: Layer, depth: int, label: str) -> None:
        plain = {
            f.name: getattr(layer, f.name)
            for f in dataclasses.fields(layer)
            if isinstance(getattr(layer, f.name), (int, float, str)) and getattr(layer, f.name) != f.default
        }
        if getattr(layer, "order", None) is not None:
            plain["order"] = ",".join(map(str, layer.order))  # type: ignore[attr-defined]
        values = " ".join(f"{k}={v}" for k, v in plain.items())
        lines.append("  " * depth + f"{label}{layer.kind} {values}".rstrip())
        for f in dataclasses.fields(layer):
            value = getattr(layer, f.name)
            if isinstance(value, tuple):
                for start, end, block in _runs(value):
                    span = f"{start}" if start == end else f"{start}-{end}"
                    describe(block, depth + 1, f"{f.name}[{span}]: ")
            elif dataclasses.is_dataclass(value) and hasattr(value, "kind") and value != f.default:
                describe(value, depth + 1, f"{f.name}: ")  # type: ignore[arg-type]

    describe(spec, 0, "")
    return lines


def _runs(blocks: tuple) -> list[tuple[int, int, Layer]]:
    runs: list[tuple[int, int, Layer]] = []
    for i, block in enumerate(blocks):
        if not isinstance(block, Layer):
            continue
        if runs and runs[-1][2] == block:
            runs[-1] = (runs[-1][0], i, block)
        else:
            runs.append((i, i, block))
    return runs
