"""Apple silicon through MLX 0.32: which shapes have fast kernels, according to its source; never run on Apple hardware."""

from __future__ import annotations

from collections.abc import Iterator

from edgeformer.layers.gqa import GQA
from edgeformer.spec import Linear, Model, layers, leaves

TARGET = "mlx (Apple silicon)"
FUSED_HEAD_DIMS = (64, 96, 128, 256)
LARGEST_GROUP = 32
FAST_INPUTS = 512
DEEP = 40


def remarks(spec: Model) -> Iterator[str]:
    """Remarks on a spec."""
    attentions = {layer for _, layer, _ in layers(spec) if isinstance(layer, GQA) and layer.mask.causal}
    if odd := sorted({a.head_dim for a in attentions} - set(FUSED_HEAD_DIMS)):
        yield (
            f"head_dim {', '.join(map(str, odd))} has no fused attention kernel for a decode step;"
            f" {', '.join(map(str, FUSED_HEAD_DIMS))} have one"
        )
    if wide := sorted({a.heads // a.kv_heads for a in attentions if a.heads // a.kv_heads > LARGEST_GROUP}):
        yield f"{wide[0]} query heads per KV head: the fused attention kernel takes at most {LARGEST_GROUP}"
    if any(a.softcap is not None for a in attentions):
        yield "scores are capped (softcap), which fused attention doesn't support: each step writes its scores to memory"
    inputs: dict[int, int] = {}
    for _, leaf in leaves(spec):
        if isinstance(leaf, Linear) and leaf.inputs % FAST_INPUTS:
            inputs[leaf.inputs] = inputs.get(leaf.inputs, 0) + 1
    if inputs:
        sizes = ", ".join(str(n) for n in sorted(inputs))
        yield (
            f"at 4 bits, matrix products with {sizes} inputs ({sum(inputs.values())} linear layers) take the slower kernel;"
            f" multiples of {FAST_INPUTS} take the fast one"
        )
    depth = spec.depth()
    if depth > DEEP:
        yield f"{depth} layers: kernel launches dominate a small model's decode step; fewer, wider layers are faster"
