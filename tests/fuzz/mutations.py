"""What is done to files: to the values of a JSON document, and to bytes."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 127, 255, 256, 1000, 65537, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**63, 2**64,
    10**30, -(2**63), 0.0, -0.0, 0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"), "", "a", "0", "true", "\x00",
    "\x1b]0;owned\x07", "\x1b[2J", "[red]text[/red]", "[/]", "../../etc/passwd", "/etc/passwd", "C:\\x", "a" * 300, "é",
    "\ud800", "😀", "{{ 1 }}", "{% for i in range(10**9) %}{% endfor %}",
    "(a+)+$", "(" * 200, "(.*.*)*=", "%s", "\n", "\r", "\u202e",
    [], {}, [[]], [{}], {"": None}, [1], ["a"], {"a": 1}, [None] * 3, [2**40], {"kind": "decoder"},
    {"repeat": 2**40, "of": {"kind": "identity_norm"}},
)  # fmt: skip
"""Values that some reader may take for something else: limits of integers, escape sequences, markup, patterns, paths."""


def nested(depth: int) -> list[Any]:
    """A list in a list in a list, so deep."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a document, the document's own first."""
    found = [at]
    if isinstance(value, dict):
        for key, below in value.items():
            found += places(below, (*at, key))
    elif isinstance(value, list):
        for i, below in enumerate(value[:50]):
            found += places(below, (*at, i))
    return found


def mutated(random: random.Random, value: Any) -> Any:
    """A document with one to three values changed: replaced, deleted, doubled, renamed, or swapped with another."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = _changed(random, value)
    return value


def _changed(random: random.Random, value: Any) -> Any:
    every = places(value)
    at = random.choice(every)
    if not at:
        return copy.deepcopy(random.choice(HOSTILE)) if random.random() < 0.02 else value
    outer = value
    for step in at[:-1]:
        outer = outer[step]
    last, what = at[-1], random.random()
    if what < 0.6:
        old = outer[last]
        same = [h for h in HOSTILE if type(h) is type(old)]
        outer[last] = copy.deepcopy(random.choice(same if same and random.random() < 0.6 else HOSTILE))
    elif what < 0.7:
        del outer[last]
    elif what < 0.75 and isinstance(outer, dict):
        outer[random.choice((str(last) + "x", "", "\x1b[31m" + str(last), str(last).upper()))] = outer.pop(last)
    elif what < 0.8 and isinstance(outer, list):
        outer += [copy.deepcopy(outer[last])] * random.choice((1, 2, 1000))
    elif what < 0.85:
        outer[last] = nested(random.choice((5, 90, 150)))
    elif what < 0.9 and isinstance(outer[last], (int, float)):
        outer[last] = outer[last] * random.choice((-1, 2, 0.5, 10**6, 1.0)) + random.choice((0, 1, -1))
    elif what < 0.95 and isinstance(outer[last], str):
        text = outer[last]
        outer[last] = (
            text[: random.randrange(len(text) + 1)] + str(random.choice(HOSTILE))[:100] + text[len(text) // 2 :]
        )
    else:
        source = value
        for step in random.choice(every):
            source = source[step]
        outer[last] = copy.deepcopy(source)
    return value


def text_of(random: random.Random, value: Any) -> str:
    """A document as JSON text, now and then with what no writer writes: doubled keys, endless nesting, a cut."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.5, separators=random.choice(((",", ":"), (", ", ": "))))
    what = random.random()
    if what < 0.02:
        return text[: random.randrange(len(text) + 1)]
    if what < 0.03:
        return "[" * 100_000
    if what < 0.04:
        return '{"a":' * 50_000
    if what < 0.07 and (found := text.find('"')) >= 0:  # a part of it twice
        end = text.find(",", found)
        return text[: end + 1] + text[found : end + 1] + text[end + 1 :] if end > 0 else text
    return text


def encoded(random: random.Random, text: str) -> bytes:
    """Its bytes; lone surrogates as some writers leave them."""
    return text.encode("utf-8", "surrogatepass")


def damaged(random: random.Random, data: bytes, *, head: int = 4096) -> bytes:
    """Bytes with one to four faults, most of them near the beginning: flipped, cut, doubled, put in, overwritten."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        if not out:
            return bytes(out)
        limit = len(out) if random.random() < 0.2 else min(head, len(out))
        at, what = random.randrange(limit), random.random()
        if what < 0.35:
            out[at] ^= 1 << random.randrange(8)
        elif what < 0.5:
            out[at] = random.choice((0, 1, 127, 128, 255))
        elif what < 0.6:
            size = random.choice((1, 2, 4, 8))
            out[at : at + size] = random.choice((b"\x00", b"\xff", b"\x7f")) * size
        elif what < 0.68:
            number = random.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
            out[at : at + 8] = number.to_bytes(8, "little")
        elif what < 0.76:
            del out[at : at + random.choice((1, 2, 8, 100))]
        elif what < 0.84:
            out[at:at] = random.randbytes(random.choice((1, 2, 8, 100)))
        elif what < 0.9:
            start = random.randrange(limit)
            out[at:at] = out[start : start + random.choice((1, 8, 64, 500))]
        elif what < 0.95:
            del out[random.randrange(len(out)) :]
        else:
            out += random.randbytes(random.choice((1, 8, 1000)))
    return bytes(out)
