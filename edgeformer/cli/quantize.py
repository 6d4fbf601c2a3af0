"""`edgeformer quantize`."""

from __future__ import annotations

import click

from edgeformer.cli._common import allow_unread, as_json, byte_progress, load_model, notes, print_json, size


@click.command(
    name="quantize",
    epilog="Examples:  edgeformer quantize models/stdlib-5m -o build/q4  ·  edgeformer quantize MODEL -o DIR --format q8",
)
@click.argument("model")
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder to write; it appears when complete.")
@click.option(
    "--format",
    "format_",
    default="q4",
    type=click.Choice(["q4", "q8"]),
    show_default=True,
    help="Of linear maps and embeddings.",
)
@click.option(
    "--method",
    default="search",
    show_default=True,
    help="rtn: round to nearest, the bits of llama.cpp's own Q4_0 and Q8_0. search: the scale that leaves the least error.",
)
@click.option("--keep", multiple=True, metavar="PATTERN", help="Tensors to leave as they are, such as 'head.*'.")
@click.option("--force", is_flag=True, help="Replace OUTPUT even if it is no artefact.")
@allow_unread
@as_json
def command(
    model: str,
    output: str,
    format_: str,
    method: str,
    keep: tuple[str, ...],
    force: bool,
    allow_unread_config: bool,
    as_json: bool,
) -> None:
    """Quantize MODEL to q4 or q8: groups of 32 that ONNX Runtime, MLX, llama.cpp and PyTorch hold bit for bit. What is written is
    a MODEL, too: export it, verify against it, compare it. Stopped in the middle, the same command goes on."""
    from edgeformer.quantize.run import quantize

    loaded = load_model(model, allow_unread_config)
    with byte_progress("quantizing") as progress:
        made = quantize(loaded, output, format=format_, method=method, keep=keep, force=force, progress=progress)
    notes(made.notes)
    if as_json:
        print_json({"folder": str(made.folder), **made.manifest})
        return
    written = sum(made.manifest["files"].values())
    bits = made.manifest["quantization"]["bits_per_weight"]
    click.echo(f"{made.folder}: {size(written)} written, {bits:.2f} bits per weight, by {method}")
