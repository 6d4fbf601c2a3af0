"""Conversion between spec trees and JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable
from typing import Any

from edgeformer import discover
from edgeformer.errors import SpecError
from edgeformer.files.limits import MAX_NODES, MAX_SIZE
from edgeformer.files.quoting import listed, shown
from edgeformer.spec import Init, Node


def to_json(node: Node) -> dict[str, Any]:
    """Convert a node to plain JSON data. Runs of equal blocks are written once, as `{"repeat": n, "of": {...}}`."""

    def plain(value: object) -> object:
        if isinstance(value, Node):
            return to_json(value)
        if isinstance(value, tuple):
            out: list[object] = []
            for item in map(plain, value):
                if out and isinstance(out[-1], dict) and isinstance(item, dict):
                    last: dict[str, Any] = out[-1]
                    if last.get("of") == item:
                        last["repeat"] += 1
                        continue
                    if last == item:
                        out[-1] = {"repeat": 2, "of": item}
                        continue
                out.append(item)
            return out
        return value

    def number(field: dataclasses.Field, value: object) -> object:  # 10000 and 10000.0 are one spec
        return float(value) if isinstance(value, int) and str(field.type).startswith("float") else value

    fields = {f.name: number(f, plain(getattr(node, f.name))) for f in dataclasses.fields(node)}
    return {"kind": node.kind, **fields}


def from_json(data: object) -> Node:
    """Build the node that `data` describes.

    Raises:
        SpecError: an unknown kind or field, a missing field, or a value of the wrong type.
    """
    if not isinstance(data, dict) or "kind" not in data:
        raise SpecError(f"a spec node is an object with a 'kind', not {shown(data)}")
    if (count := _nodes(data)) > MAX_NODES:
        raise SpecError(f"the spec expands to {count:,} nodes; the limit is {MAX_NODES:,}")
    return _node(data)


def _node(data: dict[str, Any]) -> Node:
    if "kind" not in data:
        raise SpecError(f"a spec node is an object with a 'kind', not {shown(data)}")
    cls = node_class(str(data["kind"]))
    fields = {f.name: f for f in dataclasses.fields(cls)}
    given = {k: _value(v) for k, v in data.items() if k != "kind"}
    if unknown := sorted(given.keys() - fields.keys()):
        raise SpecError(f"{cls.kind}: unknown fields {listed(unknown)}; it has {', '.join(fields)}")
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - given.keys()):
        raise SpecError(f"{cls.kind}: missing fields {', '.join(missing)}")
    hints = typing.get_type_hints(cls)
    for name, value in given.items():
        if not _matches(value, hints[name]):
            raise SpecError(f"{cls.kind}.{name}: {shown(value)} is not of type {hints[name]}, or too large")
    return cls(**given)


def node_class(kind: str) -> type[Node]:
    """Find the class of a kind, in `edgeformer/layers/<kind>.py` or an entry point."""
    if kind == Init.kind:
        return Init
    module = discover.find("edgeformer.layers", kind)
    if module is None:
        raise SpecError(
            f"unknown kind {kind!r}: no file edgeformer/layers/{kind}.py and no entry point of that name in the"
            " group 'edgeformer.layers'"
        )
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Node) and value.__dict__.get("kind") == kind:
            return value
    raise SpecError(f"the module {module.__name__} defines no class with kind = {kind!r}")


def _value(value: object) -> object:
    if isinstance(value, dict):
        return _node(value)
    if isinstance(value, list):
        out: list[object] = []
        for item in value:
            if isinstance(item, dict) and item.keys() == {"repeat", "of"}:
                if type(item["repeat"]) is not int or item["repeat"] < 1:
                    raise SpecError(f"'repeat' must be a positive integer, got {shown(item['repeat'])}")
                out += [_value(item["of"])] * item["repeat"]
            else:
                out.append(_value(item))
        return tuple(out)
    return value


def _nodes(value: object) -> int:
    """Number of nodes and list values after expanding repetitions; counting stops above the limit."""
    if isinstance(value, dict):
        if value.keys() == {"repeat", "of"} and type(value["repeat"]) is int:
            return max(value["repeat"], 1) * _nodes(value["of"])
        return 1 + _sum(value.values())
    return _sum(value) if isinstance(value, list) else 1


def _sum(values: Iterable[object]) -> int:
    total = 0
    for value in values:
        total += _nodes(value)
        if total > MAX_NODES:
            break
    return total


def _matches(value: object, hint: Any) -> bool:  # a class, a union, `tuple[...]` or `Any`
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_matches(value, a) for a in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(v, args[0]) for v in value)
    if hint is Any:
        return True
    if hint is float:
        # integers that a double represents exactly; no NaN or infinity, which JSON can't represent
        return (type(value) is int and abs(value) <= 2**53) or (type(value) is float and math.isfinite(value))
    if hint is int:
        return type(value) is int and abs(value) <= MAX_SIZE
    return isinstance(value, type(None) if hint is None else hint)


def digest(node: Node) -> str:
    """Sixteen hex digits that identify the spec, independent of the order of its JSON keys.

    Fields with default values are left out, so that adding a field changes no digest; a default must therefore never change.
    """
    return hashlib.sha256(json.dumps(_without_defaults(to_json(node)), sort_keys=True).encode()).hexdigest()[:16]


def _without_defaults(value: object) -> object:
    if isinstance(value, list):
        return [_without_defaults(v) for v in value]
    if not isinstance(value, dict) or "kind" not in value:
        return {k: _without_defaults(v) for k, v in value.items()} if isinstance(value, dict) else value
    usual = {f.name: f.default for f in dataclasses.fields(node_class(value["kind"]))}
    plain = {k: to_json(v) if isinstance(v, Node) else v for k, v in usual.items()}
    return {k: _without_defaults(v) for k, v in value.items() if k not in plain or v != plain[k]}
