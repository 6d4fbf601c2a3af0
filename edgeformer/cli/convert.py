"""`edgeformer convert`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeformer.cli._common import OutputFolder, as_json, byte_progress, echo, print_json, size


@click.command(
    name="convert",
    epilog="Examples:  edgeformer convert old-model -o old-model-safetensors  ·  edgeformer convert pytorch_model.bin -o DIR",
)
@click.argument("model", type=click.Path())
@click.option(
    "-o", "--output", required=True, type=OutputFolder(), help="Folder to write; it appears only when complete."
)
@click.option("--force", is_flag=True, help="Replace OUTPUT even if it is not an artefact.")
@as_json
def command(model: str, output: str, force: bool, as_json: bool) -> None:
    """Convert a folder with pickled weights (pytorch_model.bin) to safetensors, with its other files.

    Pickles can run code; torch's weights-only loader reads only tensors. Tensors keep their names and bits.
    """
    from edgeformer.checkpoint.convert import convert

    with byte_progress("writing weights") as progress:
        folder = convert(model, output, force=force, progress=progress)
    written = sum(f.stat().st_size for f in Path(folder).glob("*.safetensors"))
    if as_json:
        print_json({"folder": str(folder), "bytes": written})
        return
    echo(f"{folder}: {size(written)} written")
