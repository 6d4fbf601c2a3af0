"""What a model type of mlx-lm declares: the transformers family whose keys and names it shares, and what it computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgeformer.exporters.hf.config import stored_names
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.mla import MLA
from edgeformer.layers.rope import Rope
from edgeformer.layers.rope_dynamic import DynamicScaling
from edgeformer.layers.rope_linear import LinearScaling
from edgeformer.layers.rope_llama3 import Llama3Scaling
from edgeformer.layers.rope_yarn import YarnScaling
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import Config, effective, listed_windows
from edgeformer.models._shape import Unmapped, need
from edgeformer.models._windows import FULL, SLIDING
from edgeformer.spec import Layer, Model, Node, layers, tensors
from edgeformer.spec.derive import rebuilt
from edgeformer.spec.differences import Difference, comparable, differences
from edgeformer.weights.binding import NameMap, stored_part
from edgeformer.weights.parts import Cut, Part, Stack


def as_it_is(spec: Decoder) -> Decoder:
    """A model type that computes all that its config says."""
    return spec


@dataclass(frozen=True)
class MlxType:
    """A model type of mlx-lm. A file of this package ends with `TYPE = MlxType(...)`.

    family: the transformers family whose config keys and tensor names it shares.
    computes: the spec that mlx-lm computes where the config says the given one: what it hard-codes replaces what the spec has.
        Raises `Unmapped` for a config that it can't load.
    config: respells the family's config, of a spec, for mlx-lm.
    windows: it reads layer_types and sliding_window, whatever the family does.
    names: canonical name -> stored name, where they aren't the family's.
    prefix: what begins the names in mlx-lm's module tree, except the head's.
    head: the stored name of the head's path, outside the prefix.
    unquantized: ends of the paths of matrices that it can't load quantized.
    untied: the head is a matrix of its own, which is a copy of the embedding where they are tied.
    """

    family: Family
    computes: Callable[[Decoder], Decoder]
    config: Callable[[Decoder, Config], Config] | None = None
    windows: bool = False
    names: Callable[[Decoder], NameMap] | None = None
    prefix: str = "model."
    head: str = "lm_head."
    unquantized: tuple[str, ...] = ()
    untied: bool = False

    def written(self, spec: Model) -> tuple[Config, list[Difference]]:
        """mlx-lm's config of a spec, and what mlx-lm would compute otherwise.

        Raises:
            Unmapped, ConfigError, SpecError: the config can't say the spec.
        """
        assert self.family.config is not None
        config = self.family.config(spec)
        again = self.family.spec(HfConfig(dict(config), "this config", stored_names(spec, self.family)))
        assert isinstance(spec, Decoder) and isinstance(again, Decoder)
        if self.windows:
            again = _with_windows(again, spec)
            config |= _window_keys(spec)
        found = differences(comparable(effective(spec)), comparable(effective(self.computes(again))))
        if found:
            return {}, found
        del config["architectures"]
        return (config if self.config is None else self.config(spec, config)), []

    def stored(self, spec: Decoder) -> dict[str, list[tuple[Cut | Stack, str]]]:
        """Stored name -> the canonical tensors that it holds, and where."""
        family = self.family
        if self.names is not None:
            names = self.names(spec)
        else:
            usual = family.spellings(spec)[-1] if family.spellings is not None else family.name_map(spec)
            names = family.mlx_names or usual
        out: dict[str, list[tuple[Cut | Stack, str]]] = {}
        for name in tensors(spec):
            part = stored_part(names, name)
            out.setdefault(self._full(part.name), []).append((part, name))
        if self.untied and spec.tied:
            out[f"{self.head}weight"] = [(Part(f"{self.head}weight"), "embed.weight")]
        return out

    def _full(self, name: str) -> str:
        return name if name.startswith(self.head) else self.prefix + name


def everywhere(spec: Decoder, kind: type[Node], **fields: Any) -> Decoder:
    """The spec with these fields in every node of a kind."""
    made = rebuilt(spec, lambda node: replace(node, **fields) if isinstance(node, kind) else node)
    assert isinstance(made, Decoder)
    return made


def narrow_heads(spec: Decoder) -> Decoder:
    """The spec of a type that computes head_dim as the width divided by the heads."""

    def narrow(node: Node) -> Node:
        if not isinstance(node, GQA) or node.head_dim * node.heads == spec.width:
            return node
        dim, position = max(spec.width // node.heads, 1), node.position
        if isinstance(position, Rope) and position.dim == node.head_dim:
            position = replace(position, dim=dim)
        return replace(node, head_dim=dim, position=position)

    return rebuilt(spec, narrow)  # type: ignore[return-value]


def no_windows(spec: Decoder) -> Decoder:
    """The spec of a type that ignores sliding windows."""
    return everywhere(spec, Mask, window=None)


def plain_rope(spec: Decoder) -> Decoder:
    """The spec of a type that ignores RoPE scaling."""
    return everywhere(spec, Rope, scaling=None)


def _with_windows(spec: Decoder, like: Decoder) -> Decoder:
    """The spec with the other's windows, where they have one size and some layer has none: mlx-lm needs a full layer."""
    window, types = listed_windows(effective(like))
    if window is None:
        return spec
    need(FULL in types, "mlx-lm needs at least one layer without a sliding window")

    def cut(block: Layer, kind: str) -> Layer:
        size = window if kind == SLIDING else None
        return rebuilt(block, lambda node: replace(node, window=size) if isinstance(node, Mask) else node)  # type: ignore[return-value]

    return replace(spec, blocks=tuple(cut(block, kind) for block, kind in zip(spec.blocks, types, strict=True)))


def _window_keys(spec: Decoder) -> Config:
    window, types = listed_windows(effective(spec))
    return {} if window is None else {"sliding_window": window, "layer_types": types}


def mlx_rope(spec: Decoder, config: Config) -> Config:
    """The config with RoPE's scaling in the spelling that mlx-lm's `initialize_rope` reads.

    Raises:
        Unmapped: mlx-lm computes this scaling otherwise.
    """
    return {**config, **scaling_keys(spec)}


def scaling_keys(spec: Decoder) -> Config:
    """`rope_scaling` as mlx-lm reads it, for the only scaling of a spec; nothing without one."""
    attentions = [layer for _, layer, _ in layers(spec) if isinstance(layer, (GQA, MLA))]
    scalings = {a.position.scaling for a in attentions if isinstance(a.position, Rope)} - {None}
    if not scalings:
        return {}
    scaling = scalings.pop()
    match scaling:
        case LinearScaling(factor=factor):
            said: Config = {"rope_type": "linear", "type": "linear", "factor": factor}
        case Llama3Scaling() as s:
            said = {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_context,
            }
        case YarnScaling() as s:
            usual = 0.1 * math.log(s.factor) + 1 if s.factor > 1 else 1.0
            need(
                abs(s.temperature - usual) < 1e-6,
                "mlx-lm derives YaRN's temperature from its factor; this spec's temperature differs",
            )
            need(s.truncate, "mlx-lm rounds YaRN's ramp to whole channels; this spec doesn't (truncate)")
            said = {
                "rope_type": "yarn",
                "factor": s.factor,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "original_max_position_embeddings": s.original_context,
            }
        case DynamicScaling():
            raise Unmapped("mlx-lm's dynamic RoPE scaling differs from transformers'")
        case other:
            assert other is not None
            raise Unmapped(f"mlx-lm's {other.kind.removeprefix('rope_')} RoPE scaling differs from transformers'")
    return {"rope_scaling": said}
