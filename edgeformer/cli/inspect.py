"""`edgeformer inspect`."""

from __future__ import annotations

import click

from edgeformer.cli._common import SIZE, allow_unread, as_json, echo, load_model, print_json, size, without_head_option


@click.command(
    name="inspect",
    epilog="Examples:  edgeformer inspect models/stdlib-5m  ·  edgeformer inspect smollm2-135m --context 2048 --memory 8",
)
@click.argument("model")
@click.option("--context", type=SIZE, default=None, help="Tokens in the KV cache. [default: the model's]")
@click.option(
    "--memory",
    type=click.FloatRange(min=0, max=1e6, min_open=True),
    default=None,
    help="Check whether the model fits in this many GB.",
)
@allow_unread
@without_head_option
@as_json
def command(
    model: str, context: int | None, memory: float | None, allow_unread_config: bool, without_head: bool, as_json: bool
) -> None:
    """Show a model's layer tree, parameters, bytes, KV cache and FLOPs. A config or spec alone is enough."""
    from edgeformer.errors import InputError
    from edgeformer.spec.inspection import tree
    from edgeformer.spec.serialization import digest
    from edgeformer.weights.costs import attention_flops, costs

    if memory is not None and memory != memory:
        raise InputError("--memory must be a number")
    loaded = load_model(model, allow_unread_config, without_head=without_head)
    spec, tokens = loaded.spec, context or loaded.spec.context
    if tokens > spec.context:
        raise InputError(f"--context {tokens} exceeds the model's {spec.context} positions")
    count = costs(spec)
    kv = count.kv_bytes_per_token * tokens
    flops = count.flops_per_token + attention_flops(spec, tokens)
    fits = None
    if memory is not None:
        fits = {k: v + kv <= memory * 1e9 for k, v in count.weight_bytes.items()}
    if as_json:
        print_json(
            {
                "name": loaded.name,
                "spec_digest": digest(spec),
                "task": spec.task,
                "tree": tree(spec),
                "parameters": count.parameters,
                "embedding_parameters": count.embedding_parameters,
                "weight_bytes": count.weight_bytes,
                "context": tokens,
                "kv_bytes_per_token_fp16": count.kv_bytes_per_token,
                "kv_bytes_fp16": kv,
                "flops_per_token": flops,
                "fits": fits,
                "stored": None if loaded.weights is None else sorted(loaded.weights.dtypes()),
            }
        )
        return
    echo("\n".join(tree(spec)))
    echo()
    stored = "no weights" if loaded.weights is None else "stored as " + ", ".join(sorted(loaded.weights.dtypes()))
    echo(f"{'parameters':<16}{count.parameters:,} ({count.embedding_parameters:,} in embeddings), {stored}")
    for name, total in count.weight_bytes.items():
        verdict = (
            "" if fits is None else f"   {'fits' if fits[name] else 'does not fit'} in {memory:g} GB with the KV cache"
        )
        echo(f"{'weights ' + name:<16}{size(total):>10}{verdict}")
    if kv:
        echo(f"{'KV cache fp16':<16}{size(kv):>10}   for {tokens:,} tokens, {size(count.kv_bytes_per_token)} each")
    echo(f"{'FLOPs per token':<16}{flops / 1e6:>7.1f} M    with {tokens:,} tokens in context")
