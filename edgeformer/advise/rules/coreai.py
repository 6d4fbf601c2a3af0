"""Apple Core AI: what of a spec becomes Apple's own composites, and what Apple's runner takes; from the export's own rules."""

from __future__ import annotations

from collections.abc import Iterator

from edgeformer.exporters.coreai.contract import runner_refuses
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rope import Rope
from edgeformer.spec import Model, Position, layers
from edgeformer.spec.task import Task

TARGET = "coreai (Apple Core AI)"


def remarks(spec: Model) -> Iterator[str]:
    """Remarks on a spec."""
    attentions = {layer for _, layer, _ in layers(spec) if isinstance(layer, GQA)}
    plain = [
        reason
        for reason, holds in {
            "soft caps": any(a.softcap is not None for a in attentions),
            "sinks": any(a.sinks for a in attentions),
            "position biases": any(
                isinstance(a.position, Position) and not isinstance(a.position, Rope) for a in attentions
            ),
            "chunks": any(a.mask.chunk is not None for a in attentions),
            "a visible prefix": any(a.mask.prefix for a in attentions),
            "attention in both directions": any(not a.mask.causal for a in attentions),
        }.items()
        if holds
    ]
    if plain:
        yield (
            f"attention with {', '.join(plain)} is written in plain operations: Apple's composite scaled_dot_product_attention"
            " can't express it, so no fused kernel can take it"
        )
    turned = {(a.position.dim, a.head_dim) for a in attentions if isinstance(a.position, Rope)}
    if part := sorted({dim for dim, whole in turned if dim < whole}):
        yield (
            f"rotations of part of a head ({', '.join(map(str, part))} channels) are written in plain operations: Apple's"
            " exporter avoids the composite rope there, too"
        )
    if spec.task == Task.TEXT_GENERATION:
        yield from runner_refuses(spec)
