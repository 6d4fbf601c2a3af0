"""Rules for every target: the vocabulary's share, the KV cache, the shape."""

from __future__ import annotations

from collections.abc import Iterator

from edgeformer.layers.gqa import GQA
from edgeformer.spec import Model, layers
from edgeformer.weights.costs import costs

TARGET = "everywhere"
LARGE_SHARE = 0.3  # of a 0.5B model's time, the head takes 20-31 % (Lu et al. 2024, section 4)


def remarks(spec: Model) -> Iterator[str]:
    """Remarks on a spec."""
    count = costs(spec)
    table = spec.embedding_width * spec.vocab
    share = table / count.parameters
    if share > LARGE_SHARE:
        yield (
            f"the vocabulary of {spec.vocab:,} takes {share:.0%} of all parameters in one table, which the head reads for every"
            " token: use a smaller vocabulary, or a tied and quantized head"
        )
    if "tied" in spec.resizes and not spec.head_is_embedding and table > 0.1 * count.parameters:
        yield f"the head is not tied to the embedding: --tied would save {table / 1e6:.1f} M parameters"
    if count.kv_bytes_per_token:
        whole = count.kv_bytes_per_token * spec.context
        if whole > count.weight_bytes["fp16"]:
            yield (
                f"the KV cache of a full context of {spec.context:,} tokens takes {whole / 1e9:.1f} GB in fp16, more than the"
                f" weights ({count.weight_bytes['fp16'] / 1e9:.1f} GB): use fewer KV heads, sliding windows, or a shorter context"
            )
    plain = {layer for _, layer, _ in layers(spec) if isinstance(layer, GQA) and layer.mask.causal and layer.heads > 1}
    if plain and all(a.kv_heads == a.heads for a in plain):
        yield "every query head has its own KV head (multi-head attention): kv_heads = heads / 4 would quarter the KV cache"
    if spec.vocab % 64:
        yield f"the vocabulary of {spec.vocab:,} is not a multiple of 64, the tile size of matrix kernels: pad it"
