"""Check values that were read from files against declared types."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, NotRequired, Required

from edgeformer.files.quoting import shown


def mismatch(value: object, hint: Any, at: str = "") -> str | None:
    """Describe the first place where a JSON value doesn't match a type; None if all of it does.

    Args:
        value: the value as it was read.
        hint: a `TypedDict` (keys that it doesn't name are allowed), `dict[str, X]`, `list[X]`, a union, `Literal`, `str`, `int`,
            `float` (whole numbers too, finite), `bool`, `None`, a `StrEnum` or `Any`.
        at: the value's name, for the message.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return None
    if typing.is_typeddict(hint):
        return _of_fields(value, hint, at)
    if origin in (Required, NotRequired):
        return mismatch(value, arguments[0], at)
    if origin in (types.UnionType, typing.Union):
        found = [mismatch(value, a, at) for a in arguments]
        inner = [f for f, a in zip(found, arguments, strict=True) if typing.is_typeddict(a) and isinstance(value, dict)]
        return None if None in found else inner[0] if inner else _says(value, hint, at)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        known = tuple(map(str, hint))
        return None if isinstance(value, str) and value in known else _says(value, Literal[known], at)
    if origin is Literal:
        return None if value in arguments and type(value) in map(type, arguments) else _says(value, hint, at)
    if origin is list:
        if not isinstance(value, list):
            return _says(value, hint, at)
        return next((f for i, v in enumerate(value) if (f := mismatch(v, arguments[0], f"{at}[{i}]"))), None)
    if origin is dict:
        if not isinstance(value, Mapping):
            return _says(value, hint, at)
        return next((f for k, v in value.items() if (f := mismatch(v, arguments[1], _below(at, k)))), None)
    if hint is float:
        fits = (type(value) is int and abs(value) < 2**1000) or (type(value) is float and math.isfinite(value))
        return None if fits else _says(value, hint, at)
    kind = type(None) if hint is None else hint
    return None if type(value) is kind else _says(value, hint, at)


def _of_fields(value: object, hint: Any, at: str) -> str | None:
    if not isinstance(value, dict):
        return _says(value, hint, at)
    # its own __required_keys__ is wrong where annotations are strings (`from __future__ import annotations`)
    hints = typing.get_type_hints(hint, include_extras=True)
    required = {k for k, h in hints.items() if _is_required(h, hint.__total__)}
    if missing := sorted(required - value.keys()):
        return f"{_below(at, missing[0])} is missing"
    return next((f for k, h in hints.items() if k in value and (f := mismatch(value[k], h, _below(at, k)))), None)


def _is_required(hint: object, total: bool) -> bool:
    origin = typing.get_origin(hint)
    return origin is Required or (total and origin is not NotRequired)


def _below(at: str, key: object) -> str:
    name = str(key) if str(key).isidentifier() else shown(key)
    return f"{at}.{name}" if at else name


def _says(value: object, hint: object, at: str) -> str:
    name = (
        "object"
        if typing.is_typeddict(hint)
        else getattr(hint, "__name__", "")
        if not typing.get_args(hint)
        else str(hint)
    )
    wanted = {
        "str": "a string",
        "int": "an integer",
        "float": "a number",
        "bool": "true or false",
        "object": "an object",
    }
    return f"{at or 'it'} is {shown(value)}; it must be {wanted.get(name, str(hint).replace('typing.', ''))}"
