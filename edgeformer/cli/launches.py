"""`edgeformer launches`."""

from __future__ import annotations

from typing import Any

import click

from edgeformer.cli._common import allow_unread, as_json, echo, load_model, notes, print_json, text_table


@click.command(
    name="launches",
    epilog="Examples:  edgeformer launches smollm2-135m  ·  edgeformer launches MODEL --bits 4 --json",
)
@click.argument("model")
@click.option(
    "--bits", type=click.Choice(["4", "8"]), default=None, help="Count for weights quantized to this many bits."
)
@allow_unread
@as_json
def command(model: str, bits: str | None, allow_unread_config: bool, as_json: bool) -> None:
    """Count the kernels that one decode step of MODEL launches in MLX: ours, ours with Metal kernels, and mlx-lm's.

    Counted from MLX's graph of the step, on any machine: each mx.fast call, custom kernel and matrix product once, a chain of
    elementwise operations once, views not at all. This is not a GPU trace.
    """
    from importlib.util import find_spec

    from edgeformer.exporters.mlx.exporter import stock_of, stock_type
    from edgeformer.inference.lookup import require

    require("mlx")  # before the import that needs it
    from edgeformer.backends.mlx import launches, metal

    spec = load_model(model, allow_unread_config).spec
    launches.require_decoder(spec)
    width = None if bits is None else int(bits)
    kernels = {name: metal.get(name) for name in metal.names()}
    counts = {
        "ours": launches.ours(spec, bits=width),
        "ours, Metal kernels": launches.ours(spec, kernels=kernels, bits=width),
    }
    found, reason = stock_type(spec)
    if found is None:
        notes([f"no model type of mlx-lm computes this architecture: {reason}"])
    elif find_spec("mlx_lm") is None:
        notes(['mlx-lm is not installed; pip install "edgeformer[mlx-lm]"'])
    else:
        counts["mlx-lm"] = launches.mlx_lms(stock_of(spec), bits=width)
    depth = spec.depth()
    if as_json:
        print_json(
            {
                "layers": depth,
                "counts": {
                    name: {"per_layer": c.per_layer, "rest": c.rest, "layer": c.layer(), "step": c.step(depth)}
                    for name, c in counts.items()
                },
            }
        )
        return
    _show(counts, depth)


def _show(counts: dict[str, Any], depth: int) -> None:
    from rich.console import Console

    from edgeformer.backends.mlx import launches

    table = text_table("launch", *counts, title="kernel launches of one decode step (a count, not a GPU trace)")
    for part, title in (("per_layer", "per layer"), ("rest", "outside layers")):
        for name in dict.fromkeys(n for c in counts.values() for n in getattr(c, part)):
            table.add_row(f"{title}: {name}", *(str(getattr(c, part).get(name, 0) or "-") for c in counts.values()))
        table.add_section()
    table.add_row("per layer", *(str(c.layer()) for c in counts.values()))
    table.add_row(f"per step, {depth} layers", *(str(c.step(depth)) for c in counts.values()))
    Console().print(table)
    if any(launches.OFFSETS in c.per_layer for c in counts.values()):
        echo(
            f"not counted: {launches.OFFSETS} launches a second, tiny kernel for its offset, according to MLX's source"
        )
