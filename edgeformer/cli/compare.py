"""`edgeformer compare`."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import click

from edgeformer.cli._bench import bench_options, execute, plans_for_artefact, plans_for_checkpoint
from edgeformer.cli._common import byte_progress, load_model, notes


@click.command(
    name="compare",
    epilog="Examples:  edgeformer compare models/stdlib-5m  ·  edgeformer compare MODEL --precisions fp32,bf16 --json rows.jsonl",
)
@click.argument("model")
@click.option("--precisions", default="fp32", show_default=True, help="Separated by commas: fp32, bf16, fp16.")
@click.option("--runtime", "runtimes", default=None, help="Runtimes, separated by commas. [default: all that are installed]")
@click.option("-o", "--output", type=click.Path(), default=None, help="Keep the artefacts in this folder.")
@click.option(
    "--weights", type=click.Choice(["copy", "link"]), default="copy", show_default=True, help="As in `edgeformer export`."
)
@bench_options
def command(
    model: str, precisions: str, runtimes: str | None, output: str | None, weights: str, **options: Any
) -> None:
    """Export MODEL, check every build against the original, measure all of them: one table."""
    from edgeformer.export.onnx import export_onnx

    loaded = load_model(model, options["allow_unread_config"])
    loaded.require_weights()
    chosen = None if runtimes is None else [r.strip() for r in runtimes.split(",") if r.strip()]
    wanted = [p.strip() for p in precisions.split(",") if p.strip()]
    with contextlib.ExitStack() as stack:
        base = Path(output or stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeformer-")))
        plans = []
        for precision in wanted:
            folder = base / f"{Path(loaded.name).name}-onnx-{precision}"
            with byte_progress(f"exporting {precision}") as progress:
                made = export_onnx(loaded, folder, precision=precision, weights=weights, progress=progress)
            notes(made.notes[len(loaded.notes) :])
            plans += plans_for_artefact(str(folder), made.manifest, loaded.spec, chosen)
        plans += plans_for_checkpoint(model, loaded.spec, chosen, options)
        execute(plans, loaded.spec, model, options, weights_digest=loaded.weights_digest())
