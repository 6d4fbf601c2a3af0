"""`edgeformer export`."""

from __future__ import annotations

import click

from edgeformer.cli._common import allow_unread, as_json, byte_progress, load_model, notes, print_json, size


@click.command(
    name="export",
    epilog="Examples:  edgeformer export models/stdlib-5m -o build/m  ·  edgeformer export MODEL -o DIR --weights link",
)
@click.argument("model")
@click.option("-o", "--output", required=True, type=click.Path(), help="Folder to write; it appears when complete.")
@click.option("--to", "kind", default="onnx", type=click.Choice(["onnx"]), show_default=True, help="Format.")
@click.option(
    "--precision",
    default="fp32",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    show_default=True,
    help="fp16: weights and arithmetic. bf16: weights; arithmetic in fp32.",
)
@click.option("--target", default="cpu", show_default=True, help="cpu (ONNX Runtime) or portable (plain ai.onnx).")
@click.option(
    "--weights",
    default="copy",
    type=click.Choice(["copy", "link"]),
    show_default=True,
    help="copy: a self-contained folder. link: point into the checkpoint's files, nothing is copied.",
)
@click.option("--context", type=click.IntRange(min=1), default=None, help="Longest sequence. [default: the model's]")
@click.option("--inline", is_flag=True, help="Write fused ops out, for runtimes without ONNX functions.")
@click.option("--force", is_flag=True, help="Replace OUTPUT even if it is no artefact.")
@allow_unread
@as_json
def command(
    model: str,
    output: str,
    kind: str,
    precision: str,
    target: str,
    weights: str,
    context: int | None,
    inline: bool,
    force: bool,
    allow_unread_config: bool,
    as_json: bool,
) -> None:
    """Export MODEL to a folder for ONNX Runtime and ONNX Runtime GenAI, with the names that Optimum and transformers.js use."""
    from edgeformer.export.onnx import export_onnx

    loaded = load_model(model, allow_unread_config)
    with byte_progress("writing weights") as progress:
        made = export_onnx(
            loaded,
            output,
            precision=precision,
            target=target,
            weights=weights,
            context=context,
            inline=inline,
            force=force,
            progress=progress,
        )
    notes(made.notes[len(loaded.notes) :])
    if as_json:
        print_json({"folder": str(made.folder), **made.manifest})
        return
    written = sum(made.manifest["files"].values())
    linked = sum(entry["bytes"] for entry in made.manifest["linked"].values())
    click.echo(f"{made.folder}: {size(written)} written" + (f", {size(linked)} linked" if linked else ""))
    click.echo(f"check it: edgeformer verify {made.folder} --against {model}")
