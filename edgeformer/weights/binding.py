"""Weights by canonical name, read on demand, whatever their names and layout in a checkpoint.

A name map is data: `{"layers.{i}.attention.q.weight": "model.layers.{i}.self_attn.q_proj.weight", ...}`. Where the stored
tensor isn't the canonical one, the value is an entry of `edgeformer.weights.parts`. Names left over on either side are an error.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.files.digests import file_digest
from edgeformer.files.quoting import MAX_VALUE, inline
from edgeformer.spec import Model, tensors
from edgeformer.weights.formats import QuantizedTensor
from edgeformer.weights.parts import Cut, Part, Stack, numbered, stacked
from edgeformer.weights.safetensors_file import StoredTensor

NameMap = Mapping[str, "str | Cut | Stack"]


@dataclass(frozen=True)
class Source:
    """Where one canonical tensor comes from; `part` is None when it is used exactly as stored."""

    stored: StoredTensor
    part: Cut | None

    @property
    def share(self) -> float:
        """The fraction of the stored tensor that it takes."""
        return 1.0 if self.part is None else self.part.share

    @property
    def shape(self) -> tuple[int, ...]:
        """The canonical tensor's shape."""
        return self.stored.shape if self.part is None else self.part.shape(self.stored.shape)

    def read(self) -> np.ndarray:
        """The canonical tensor, in its stored type."""
        x = self.stored.read()
        return x if self.part is None else np.ascontiguousarray(self.part.take(x))


class Weights(Mapping[str, Any]):
    """Canonical name -> array in its stored type. Reading is lazy and nothing is cached."""

    def __init__(self, sources: dict[str, Source]):
        self.sources = sources

    def __getitem__(self, name: str) -> np.ndarray:
        return self.sources[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def allowing_nonfinite(self) -> Weights:
        """The same weights, with NaN and infinities accepted."""
        return Weights({name: replace(s, stored=_allowing(s.stored)) for name, s in self.sources.items()})

    def check_unchanged(self) -> None:
        """Check that every file is still in the state in which its header was read, so that no output mixes two states.

        Raises:
            CheckpointError: a file was replaced or written to; the message names it.
        """
        parts = {(t.file, t.identity): t for source in self.sources.values() for t in source.stored.parts()}
        for tensor in parts.values():
            tensor.check_unchanged()

    def content_digest(self) -> str:
        """SHA-256 over every byte of the weights' files, and over which stored tensor is used under which name.

        Raises:
            CheckpointError: a file can't be read.
        """
        h = hashlib.sha256()
        files = set()
        for name, source in sorted(self.sources.items()):
            h.update(f"{name} {source.stored.dtype} {source.stored.shape} {source.part}\n".encode())
            files |= {t.file for t in source.stored.parts()}
        for file in sorted(files):
            h.update(file_digest(file).encode())
        return h.hexdigest()

    def dtypes(self) -> set[str]:
        """The safetensors types that occur."""
        return {source.stored.dtype for source in self.sources.values()}


def _allowing(tensor: StoredTensor) -> StoredTensor:
    """A stored tensor, and those that it is made of, without the check for finite values."""
    changes: dict[str, Any] = {"allow_nonfinite": True}
    for entry in fields(tensor):
        value = getattr(tensor, entry.name)
        if isinstance(value, StoredTensor):
            changes[entry.name] = _allowing(value)
        elif isinstance(value, Source):
            changes[entry.name] = replace(value, stored=_allowing(value.stored))
        elif isinstance(value, tuple) and value and all(isinstance(v, StoredTensor) for v in value):
            changes[entry.name] = tuple(map(_allowing, value))
    return replace(tensor, **changes)


def bind(
    spec: Model,
    checkpoint: Mapping[str, StoredTensor],
    spellings: Sequence[NameMap],
    *,
    prefixes: tuple[str, ...] = ("",),
    ignored: Mapping[str, str] | None = None,
    heads: Sequence[str] = (),
    tied: Mapping[str, str] | None = None,
    where: str = "the checkpoint",
) -> tuple[Weights, list[str]]:
    """Match a checkpoint's tensors to a spec's.

    Args:
        spec: the model whose tensors are needed.
        checkpoint: stored name -> tensor.
        spellings: name maps, canonical pattern -> stored pattern; `{i}` stands for a layer's number. Writers of one family
            differ; the map that finds most tensors is used.
        prefixes: what stored names may start with; the one that finds most tensors is used (`""`, `"model."`).
        ignored: regular expression of stored names that are ignored -> reason.
        heads: regular expressions of heads' stored names, for the message on unused ones.
        tied: stored name that is ignored -> canonical name of the tensor that it must equal.
        where: the checkpoint's name, for messages.

    Returns:
        The weights, and a note per reason for which stored tensors were ignored.

    Raises:
        CheckpointError: missing tensors, unused tensors (both listed), or wrong shapes.
    """
    wanted = tensors(spec)

    def found_by(names: NameMap, prefix: str) -> int:
        firsts = (_first_name(stored_part(names, n)) for n in wanted)
        return sum(prefix + first in checkpoint or first in checkpoint for first in firsts)

    names, prefix = max(((names, p) for names in spellings for p in prefixes), key=lambda pair: found_by(*pair))
    claimed = {_first_name(stored_part(names, n)) for n in wanted}
    aliases: dict[str, list[str]] = {}
    for alias, owner in (tied or {}).items():
        if alias not in claimed and alias.removeprefix(prefix) not in claimed:
            aliases.setdefault(owner, []).append(alias)
    sources: dict[str, Source] = {}
    missing, misshapen, used = [], [], set()
    for name, shape in wanted.items():
        part = stored_part(names, name)
        found, absent = _members(part, checkpoint, prefix)
        if absent and (alias := next((a for a in aliases.get(name, ()) if a in checkpoint), None)):
            # writers keep one name of a shared tensor, and not all keep the same one
            found, absent, part = {alias: checkpoint[alias]}, None, Part(alias)
        if absent:
            missing.append(f"{absent} (for {name} {list(shape)})")
            continue
        used.update(found)
        if isinstance(part, Stack):
            members = list(found.values())
            if any(m.shape != part.part_shape(shape) for m in members):
                misshapen.append(f"{part.name} are {list(members[0].shape)}; {name} needs {list(shape)} in total")
                continue
            sources[name] = Source(stacked(members, part.flat), None)
            continue
        ((full, stored),) = found.items()
        if part.shape(stored.shape) != shape:
            misshapen.append(f"{full} is {list(stored.shape)}; {name} needs {list(shape)}")
        if isinstance(stored, QuantizedTensor) and not part.plain:
            sources[name] = Source(_cut_quantized(stored, part, shape), None)
            continue
        sources[name] = Source(stored, None if part.plain else part)
    notes: dict[str, list[str]] = {}
    unused = []
    for name in checkpoint:
        if name in used:
            continue
        if (tied or {}).get(name) in sources:
            same = sources[(tied or {})[name]].stored
            if not _equal(checkpoint[name], same):
                raise CheckpointError(
                    f"{where}: the config ties the head to the embedding (tie_word_embeddings), but {name} differs from"
                    f" {same.name}. Set tie_word_embeddings to false to use the stored head"
                )
            continue
        reason = next((why for pattern, why in (ignored or {}).items() if re.search(pattern, name)), None)
        (unused if reason is None else notes.setdefault(reason, [])).append(name)
    problems = [
        f"{len(items):,} {what}:\n    "
        + "\n    ".join([*map(_line, items[:12]), *(["..."] if len(items) > 12 else [])])
        for what, items in (
            ("tensors are missing", missing),
            ("tensors are not used by the spec", unused),
            ("tensors have the wrong shape", misshapen),
        )
        if items
    ]
    if any(re.search(pattern, name) for name in (*unused, *missing) for pattern in heads):
        problems.append(
            "The stored head is not the one that config.json's architectures names; --without-head takes the body alone"
        )
    if problems:
        raise CheckpointError(f"{where} does not fit the spec.\n  " + "\n  ".join(problems))
    return Weights(sources), [f"ignored {len(v)} tensors ({_line(v[0])}, ...): {k}" for k, v in notes.items() if k]


@dataclass(frozen=True)
class QuantizedRows(QuantizedTensor):
    """Whole rows of a quantized tensor: their codes and scales are taken as the weights would be."""

    of: QuantizedTensor
    cut: Cut

    def parts(self) -> tuple[StoredTensor, ...]:
        return self.of.parts()

    def quantized(self) -> tuple[np.ndarray, np.ndarray]:
        codes, scales = (np.ascontiguousarray(self.cut.take(x)) for x in self.of.quantized())
        return codes, scales


@dataclass(frozen=True)
class DequantizedCut(StoredTensor):
    """A part of a quantized tensor that splits its groups: float32."""

    of: QuantizedTensor
    cut: Cut

    @property
    def raw(self) -> bool:
        return False

    def parts(self) -> tuple[StoredTensor, ...]:
        return self.of.parts()

    def read(self) -> np.ndarray:
        return np.ascontiguousarray(self.cut.take(self.of.read()))


def _cut_quantized(stored: QuantizedTensor, cut: Cut, shape: tuple[int, ...]) -> StoredTensor:
    place = stored.name, stored.file, stored.offset, int(stored.nbytes * cut.share)
    if cut.whole_rows:
        return QuantizedRows(*place, stored.dtype, shape, stored.format, stored, cut, identity=stored.identity)
    return DequantizedCut(*place, "F32", shape, stored, cut, identity=stored.identity)


def _line(text: str) -> str:
    return inline(text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}...")


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two stored tensors hold the same bytes, by 64 samples: separately trained heads differ everywhere."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if not (a.raw and b.raw):
        return bool(np.array_equal(a.read(), b.read()))
    with a.open() as f, b.open() as g:
        for i in range(64):
            at = max(a.nbytes - 256, 0) * i // 63
            f.seek(a.offset + at)
            g.seek(b.offset + at)
            if f.read(min(256, a.nbytes)) != g.read(min(256, b.nbytes)):
                return False
    return True


def stored_part(names: NameMap, canonical: str) -> Cut | Stack:
    """The map's entry for a canonical name; without one the stored name is the canonical name."""
    if (entry := names.get(canonical)) is not None:
        return Part(entry) if isinstance(entry, str) else entry
    pattern = re.sub(r"\.(\d+)\.", ".{i}.", canonical, count=1)
    if (entry := names.get(pattern)) is None:
        return Part(canonical)
    number = re.search(r"\.(\d+)\.", canonical)
    return numbered(Part(entry) if isinstance(entry, str) else entry, number.group(1) if number else "")


def _first_name(part: Cut | Stack) -> str:
    return part.names()[0] if isinstance(part, Stack) else part.name


def _members(
    part: Cut | Stack, checkpoint: Mapping[str, StoredTensor], prefix: str
) -> tuple[dict[str, StoredTensor], str | None]:
    """The stored tensors that an entry refers to, and the name of a missing one."""
    found: dict[str, StoredTensor] = {}
    for name in part.names() if isinstance(part, Stack) else [part.name]:
        full = name if name in checkpoint else prefix + name
        if (stored := checkpoint.get(full)) is None:
            return found, full
        found[full] = stored
    return found, None
