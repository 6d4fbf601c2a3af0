"""Helpers for name maps: canonical names on the left, a checkpoint's own on the right, `{i}` for the layer's number."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgeformer.layers.encoder import Encoder
from edgeformer.layers.moe import MoE
from edgeformer.spec import Model, layers
from edgeformer.weights.parts import Cut, Part, Rows, Stack

KINDS = ("weight", "bias")
Names = dict[str, "str | Cut | Stack"]


def named(pairs: Mapping[str, str], ours: str = "", theirs: str = "") -> Names:
    """Weight and bias of each pair, under the prefixes `ours` and `theirs`."""
    return {f"{ours}{a}.{kind}": f"{theirs}{b}.{kind}" for a, b in pairs.items() for kind in KINDS}


def side_by_side(ours: str, stored: str, sizes: Mapping[str, int]) -> Names:
    """Linear maps whose rows are concatenated in one stored matrix: Phi-3's qkv_proj and gate_up_proj."""
    out: Names = {}
    total, start = sum(sizes.values()), 0
    for name, size in sizes.items():
        for kind in KINDS:
            out[f"{ours}.{name}.{kind}"] = Rows(f"{stored}.{kind}", start, start + size, total)
        start += size
    return out


def by_group(ours: str, stored: str, groups: int, head_dim: int) -> Names:
    """q, k and v by key head: `groups` query heads, then their key, then their value (GPT-NeoX with 1, BLOOM, Falcon)."""
    return side_by_side(ours, stored, {"q": groups * head_dim, "k": head_dim, "v": head_dim})


def experts(spec: Model, stored: str, theirs: Mapping[str, str]) -> Names:
    """Experts that are stored separately. `stored` is a pattern with `{i}`, `{e}` and, for the map's name, `{map}`.

    Named layer by layer, since dense layers of the same model have maps of the same names.
    """
    out: Names = {}
    for path, layer, _ in layers(spec):
        if isinstance(layer, MoE):
            where = stored.replace("{i}", path.split(".")[1])
            out |= {
                f"{path}.{ours}.weight": Stack(where.replace("{map}", name) + ".weight", layer.experts)
                for ours, name in theirs.items()
            }
    return out


def stacked_experts(spec: Model, usual: Names, at: str, fused_at: str) -> list[Names]:
    """How other writers store a family's experts: transformers 5 (in a plain `state_dict`) as one tensor for all gate and up maps
    and one for all down maps, mlx-lm as one tensor for each map.

    Args:
        spec: the model.
        usual: the family's map.
        at: the mixture's stored name below a layer in mlx-lm.
        fused_at: the same in transformers 5.
    """
    fused, switch = dict(usual), dict(usual)
    for path, layer, _ in layers(spec):
        if isinstance(layer, MoE):
            where = f"layers.{path.split('.')[1]}"
            fused |= {
                f"{path}.gate.weight": Part(f"{where}.{fused_at}.experts.gate_up_proj", 0, 2, axis=1),
                f"{path}.up.weight": Part(f"{where}.{fused_at}.experts.gate_up_proj", 1, 2, axis=1),
                f"{path}.down.weight": f"{where}.{fused_at}.experts.down_proj",
                f"{path}.router.weight": f"{where}.{fused_at}.gate.weight",
            }
            switch |= {
                f"{path}.{ours}.weight": f"{where}.{at}.switch_mlp.{name}.weight" for ours, name in PROJECTIONS.items()
            }
    return [fused, switch]


def with_own_bias(spec: Model, shared: Mapping[str, str | Cut | Stack], stored: str) -> Names:
    """The name map of an encoder. An untied output map has its own bias, `stored`; the shared one is not used."""
    own = isinstance(spec, Encoder) and spec.mlm is not None and not spec.mlm.tied
    return {**shared, "mlm_bias": stored} if own else dict(shared)


def unused_bias(stored: str) -> Callable[[Model], dict[str, str]]:
    """The shared bias of a masked-token head, which transformers has even where the untied output map has its own."""

    def copies(spec: Model) -> dict[str, str]:
        own = isinstance(spec, Encoder) and spec.mlm is not None and not spec.mlm.tied
        return {stored: "mlm_bias"} if own else {}

    return copies


PROJECTIONS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def halves(ours: str, stored: str, first: str = "gate", second: str = "up") -> Names:
    """Two linear maps of one size, concatenated in one stored matrix."""
    return {
        f"{ours}.{name}.{kind}": Part(f"{stored}.{kind}", index, 2)
        for index, name in enumerate((first, second))
        for kind in KINDS
    }
