"""Which transformers family can represent a spec, and its config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeformer import discover
from edgeformer.errors import ConfigError, ExportError, SpecError
from edgeformer.layers.encoder import Encoder
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family, family_of
from edgeformer.models._shape import OtherKind, Unmapped
from edgeformer.spec import Model, tensors
from edgeformer.spec.differences import comparable, differences, distance, listed
from edgeformer.weights.binding import stored_part
from edgeformer.weights.parts import Stack

_UNMAPPED, _OTHER_KIND = 1_000_000, 2_000_000
"""Distances of a family that has no setting for a property of the spec, and of one that isn't of its kind."""


@dataclass(frozen=True)
class Misfit:
    """Something that doesn't represent a spec: how far it is from it, and why."""

    distance: int
    reason: str

    @classmethod
    def of(cls, name: str, error: Exception) -> Misfit:
        """The misfit of an attempt that raised."""
        return cls(_OTHER_KIND if isinstance(error, OtherKind) else _UNMAPPED, f"{name}: {error}")


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
    order is: families that transformers has a class for, `prefer` (the model_type that the model came with), common families,
    families that are not another one's double, and the alphabet. `known` restricts the choice to some model types.

    Raises:
        ExportError: none fits; the message names the nearest family and what differs.
    """
    misfits: list[Misfit] = []
    for name, family in _candidates(prefer, known):
        with discover.sparing("edgeformer.models", name):
            try:
                assert family.config is not None
                config = family.config(spec)
                stored = stored_names(spec, family)
                reader = HfConfig(dict(config), f"the {name} config of this spec", stored)
                again = family.spec(reader)
                reader.done()
            except (Unmapped, ConfigError, SpecError) as e:
                misfits.append(Misfit.of(name, e))
                continue
            differing = differences(comparable(spec), comparable(again))
            if not differing:
                return Fit(name, config, family)
            misfits.append(Misfit(distance(differing), f"{name}, which differs in {listed(differing)}"))
    what = "transformers family" if known is None else "model type that its reader knows"
    raise ExportError(f"no {what} can represent this architecture; the nearest is {nearest(misfits)}")


def completed(config: dict[str, Any], ids: dict[str, Any]) -> dict[str, Any]:
    """The config with special ids. Where an id is part of the architecture (RoBERTa counts positions from the padding id), the
    architecture's stays."""
    return {**config, **{key: value for key, value in ids.items() if config.get(key) is None}}


def nearest(misfits: Sequence[Misfit]) -> str:
    """The nearest of several that don't fit, and why it doesn't."""
    return min(misfits, key=lambda m: m.distance).reason if misfits else "none, since none is installed"


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
        return not family.in_transformers, name != wanted, not family.common, family.double_of is not None, name

    return sorted(found, key=order)


def full_name(spec: Model, family: Family, name: str) -> str:
    """A stored name with transformers' prefix; a bare encoder's names have none."""
    bare = isinstance(spec, Encoder) and spec.mlm is None and spec.classifier is None
    return name if bare or name.startswith(family.unprefixed) else family.prefixes[0] + name


def stored_names(spec: Model, family: Family) -> set[str]:
    """The names that the family's folder would have."""
    names = family.name_map(spec)
    parts = [stored_part(names, name) for name in tensors(spec)]
    found = [name for part in parts for name in (part.names() if isinstance(part, Stack) else [part.name])]
    return {full_name(spec, family, name) for name in found}
