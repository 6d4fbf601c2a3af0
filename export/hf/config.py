"""Which transformers family can represent a spec, and its config.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgeformer import discover
from edgeformer.errors import ConfigError, ExportError, SpecError
from edgeformer.layers.encoder import Encoder
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family, family_of
from edgeformer.models._shape import Unmapped
from edgeformer.spec import Model, tensors
from edgeformer.spec.serialization import to_json
from edgeformer.weights.binding import stored_part
from edgeformer.weights.parts import Stack

_WITHOUT_EFFECT = ("init", "dropout", "pooling")
"""Fields that don't affect a trained model's outputs, or that transformers keeps elsewhere."""
_SHOWN = 3


@dataclass(frozen=True)
class Fit:
    """A family that represents a spec exactly: its config.json and its declarations."""

    name: str
    config: dict[str, Any]
    family: Family

    def note(self) -> str:
        """Which family it is, for the user."""
        lacking = (
            "" if self.family.in_transformers else ", which transformers has no class for: edgeformer reads the folder"
        )
        return f"model_type {self.config['model_type']}{lacking}"


def known_config(spec: Model, own: dict[str, Any] | None, known: frozenset[str]) -> dict[str, Any]:
    """A config.json for a reader that knows only some model types: the model's own, completed by keys that it leaves out as
    defaults, or that of another model type that is the same architecture.

    Raises:
        ExportError: no known model type can represent the spec.
    """
    said = None if own is None else own.get("model_type")
    try:
        fit = family_config(spec, str(said), known)
    except ExportError:
        if own is not None and said in known:  # a plug-in's family that has no inverse
            return own
        raise
    if own is None or fit.config["model_type"] != said:
        return fit.config
    return {**{key: value for key, value in fit.config.items() if not key.startswith("rope_")}, **own}


def family_config(spec: Model, prefer: str | None = None, known: frozenset[str] | None = None) -> Fit:
    """The family that represents the spec.

    Each family's inverse makes a config, and its own reader has to turn that back into the same spec. Where several fit, the
    order is: `prefer` (the model_type that the model came with), common families, families that transformers has a class for,
    families that are not another one's double, and the alphabet. `known` restricts the choice to some model types.

    Raises:
        ExportError: none fits; the message names the nearest family and what differs.
    """
    misfits: list[tuple[int, str, list[str]]] = []
    for name, family in _candidates(prefer, known):
        with discover.sparing("edgeformer.models", name):
            try:
                assert family.config is not None
                config = family.config(spec)
                stored = _stored(spec, family)
                reader = HfConfig(dict(config), f"the {name} config of this spec", stored)
                again = family.spec(reader)
                reader.done()
            except (Unmapped, ConfigError, SpecError) as e:
                misfits.append((1000, name, [str(e)]))
                continue
            differing = differences(_comparable(spec), _comparable(again))
            if not differing:
                return Fit(name, config, family)
            misfits.append((len(differing), name, differing))
    raise ExportError(_nearest(misfits, "transformers family" if known is None else "model type that its reader knows"))


def completed(config: dict[str, Any], ids: dict[str, Any]) -> dict[str, Any]:
    """The config with special ids. Where an id is part of the architecture (RoBERTa counts positions from the padding id), the
    architecture's stays."""
    return {**config, **{key: value for key, value in ids.items() if config.get(key) is None}}


def _nearest(misfits: list[tuple[int, str, list[str]]], what: str) -> str:
    """The message for a spec that no family represents."""
    if not misfits:
        return f"no {what} is installed"
    _, name, differing = min(misfits, key=lambda m: m[0])
    rest = f" (and {len(differing) - _SHOWN} more)" if len(differing) > _SHOWN else ""
    return (
        f"no {what} can represent this architecture; the nearest is"
        f" {name}, which differs in {'; '.join(differing[:_SHOWN])}{rest}"
    )


def _candidates(prefer: str | None, known: frozenset[str] | None) -> list[tuple[str, Family]]:
    """Families that write configs, in the order in which they are tried."""
    found = []
    for name, module in discover.each("edgeformer.models"):
        with discover.sparing("edgeformer.models", name):
            family = family_of(module)
            allowed = known is None or not known.isdisjoint((name, name.replace("_", "-")))
            if family is not None and family.config is not None and allowed:
                found.append((name, family))
    wanted = None if prefer is None else prefer.replace("-", "_")

    def order(candidate: tuple[str, Family]) -> tuple[bool | str, ...]:
        name, family = candidate
        return name != wanted, not family.common, not family.in_transformers, family.double_of is not None, name

    return sorted(found, key=order)


def differences(wanted: Any, found: Any) -> list[str]:
    """What differs between two specs' JSON, as `field = wanted (found)`; the same difference in several blocks is said once."""
    out: dict[tuple[str, str], list[str]] = {}
    for path, ours, theirs in _unequal(wanted, found, ()):
        block = next((str(step) for step in path if isinstance(step, int)), "")
        field = ".".join("*" if isinstance(step, int) else step for step in path)
        out.setdefault((field, f"{_said(ours)} ({_said(theirs)} there)"), []).append(block)
    lines = []
    for (field, values), blocks in out.items():
        which = blocks[0] if len(set(blocks)) == 1 else "*"
        lines.append(f"{field.replace('*', which, 1)} = {values}")
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


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("kind", "..."))
    return f"{len(value)} items" if isinstance(value, list) else "none" if value is None else str(value)


def _comparable(spec: Model) -> Any:
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


def full_name(spec: Model, family: Family, name: str) -> str:
    """A stored name with transformers' prefix; a bare encoder's names have none."""
    bare = isinstance(spec, Encoder) and spec.mlm is None
    return name if bare or name.startswith(family.unprefixed) else family.prefixes[0] + name


def _stored(spec: Model, family: Family) -> set[str]:
    """The names that the family's folder would have."""
    names = family.name_map(spec)
    parts = [stored_part(names, name) for name in tensors(spec)]
    found = [name for part in parts for name in (part.names() if isinstance(part, Stack) else [part.name])]
    return {full_name(spec, family, name) for name in found}
