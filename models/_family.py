"""What a family file declares: how a Hugging Face config becomes a spec, and how its tensors are stored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from edgeformer.models._config import HfConfig
from edgeformer.spec import Model
from edgeformer.weights.binding import NameMap


@dataclass(frozen=True)
class Family:
    """One `model_type`. A family file ends with `FAMILY = Family(spec, NAMES, ...)`.

    spec: reads every key that it supports, and names those that it ignores.
    names: canonical tensor name -> stored name (`{i}` is the layer), or a `Part` where the stored tensor differs; a function of
        the spec where the cuts depend on sizes.
    config: the inverse of `spec`, for `export --to hf`; it reads what the family has keys for, since its result is read back and
        compared (see `_inverse`); raises `Unmapped` for another kind of model.
    common: nearly every tool reads it, so it is tried first for a spec that fits several families.
    in_transformers: transformers has a class for it.
    double_of: the family whose architecture it repeats under another model_type.
    prefixes: what stored names may begin with, transformers' own prefix first.
    copies: for a spec, stored name -> the canonical tensor that transformers keeps under this name as well, unused.
    unprefixed: beginnings of stored names that never have a prefix.
    heads: regular expressions of the stored tensors of heads, which `--without-head` leaves out.
    ignored: regular expression -> why such stored tensors are ignored; "" to ignore them without a note.
    tied: stored name -> the canonical tensor that it must equal to be ignored.
    renamed: regular expression -> current spelling of old stored names.
    spellings: further name maps, of other writers, for a spec.
    mlx_names: the map of mlx-lm's folders, where it isn't `names`.
    """

    spec: Callable[[HfConfig], Model]
    names: NameMap | Callable[[Any], NameMap]
    config: Callable[[Model], dict[str, Any]] | None = None
    prefixes: tuple[str, ...] = ("",)
    copies: Callable[[Any], Mapping[str, str]] | None = None
    unprefixed: tuple[str, ...] = ("lm_head.",)
    heads: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    spellings: Callable[[Any], Sequence[NameMap]] | None = None
    mlx_names: NameMap | None = None
    common: bool = False
    in_transformers: bool = True
    double_of: str | None = None

    def name_map(self, spec: Model) -> NameMap:
        """transformers' own names for a spec."""
        return self.names(spec) if callable(self.names) else self.names

    def name_maps(self, spec: Model) -> list[NameMap]:
        """All maps for a spec, transformers' first."""
        return [self.name_map(spec), *(self.spellings(spec) if self.spellings is not None else ())]


_GLOBALS = ("config", "prefixes", "ignored", "tied", "renamed", "spellings", "mlx_names")


def family_of(module: ModuleType) -> Family | None:
    """What a family file declares; None for a module that is not a family.

    A module with globals `spec`, `NAMES`, `PREFIXES`, ... instead of `FAMILY`, the older form of plug-ins, is read with a
    warning.
    """
    found = getattr(module, "FAMILY", None)
    if isinstance(found, Family) or not hasattr(module, "spec"):
        return found
    warnings.warn(
        f"{module.__name__} has no FAMILY; end it with FAMILY = Family(spec, NAMES, ...) from edgeformer.models._family",
        DeprecationWarning,
        stacklevel=2,
    )
    given = {name: value for name in _GLOBALS if (value := _global(module, name)) is not None}
    if (free := _global(module, "unprefixed")) is not None:
        given["unprefixed"] = (free,) if isinstance(free, str) else tuple(free)
    return Family(module.spec, _global(module, "names"), **given)


def _global(module: ModuleType, name: str) -> Any:
    return getattr(module, name, getattr(module, name.upper(), None))
