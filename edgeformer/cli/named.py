"""`edgeformer named`."""

from __future__ import annotations

import click

from edgeformer.cli._common import as_json, echo, print_json


@click.command(name="named", epilog="Examples:  edgeformer named  ·  edgeformer named qwen --json")
@click.argument("contains", default="")
@as_json
def command(contains: str, as_json: bool) -> None:
    """List the named specs, which serve as MODEL without a download. CONTAINS keeps names that contain it."""
    from edgeformer.checkpoint.loading import load, named_specs
    from edgeformer.weights.costs import costs

    found = []
    for name in named_specs():
        if contains.lower() in name:
            spec = load(name).spec
            count = costs(spec)
            found.append(
                {
                    "name": name,
                    "parameters": count.parameters,
                    "layers": spec.depth(),
                    "width": spec.width,
                    "vocab": spec.vocab,
                    "context": spec.context,
                    "kv_bytes_per_token_fp16": count.kv_bytes_per_token,
                }
            )
    if as_json:
        print_json(found)
        return
    head = ("name", "parameters", "layers", "width", "vocab", "context", "KV bytes/token")
    echo(f"{head[0]:<26}{head[1]:>12}{head[2]:>8}{head[3]:>7}{head[4]:>9}{head[5]:>9}{head[6]:>16}")
    for row in found:
        name, count, *rest = row.values()
        cells = "".join(f"{x:>{n}}" for x, n in zip(rest, (8, 7, 9, 9, 16), strict=True))
        echo(f"{name:<26}{count / 1e6:>10.1f} M{cells}")
