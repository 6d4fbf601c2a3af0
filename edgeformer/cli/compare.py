"""`edgeformer compare`."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import click

from edgeformer.cli._bench import bench_options, execute, formats_for, settings_of, sources_for
from edgeformer.cli._common import byte_progress, load_model, notes


@click.command(
    name="compare",
    epilog="Examples:  edgeformer compare models/stdlib-5m  ·  edgeformer compare MODEL --precisions q8,q4 --json rows.jsonl",
)
@click.argument("model")
@click.option(
    "--precisions",
    default="fp32",
    show_default=True,
    help="Of the exports, separated by commas: fp32, bf16, fp16; q4, q8; for MLX also 4bit, 8bit.",
)
@click.option("-o", "--output", type=click.Path(), default=None, help="Keep the artefacts in this folder.")
@click.option(
    "--weights",
    type=click.Choice(["copy", "link"]),
    default="copy",
    show_default=True,
    help="As in `edgeformer export`.",
)
@bench_options
def command(model: str, precisions: str, output: str | None, weights: str, **options: Any) -> None:
    """Export MODEL, check every build against the original, measure all of them: one table."""
    from edgeformer import api
    from edgeformer.errors import ExportError, InputError

    loaded = load_model(model, options["allow_unread_config"])
    loaded.require_weights()
    api.check_lengths(settings_of(options), loaded.spec, loaded.spec.context, model)
    wanted = list(dict.fromkeys(p.strip() for p in precisions.split(",") if p.strip()))
    if not wanted:
        raise InputError("--precisions names none; give fp32, bf16, fp16 or several")
    name = Path(model).resolve().name
    with contextlib.ExitStack() as stack:
        base = Path(output or stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeformer-")))
        folders = []
        for precision in wanted:
            for kind in formats_for(options, loaded.spec, precision):
                folder = base / f"{name}-{kind}-{precision}"
                given = {"onnx": {"weights": weights}, "gguf": {"no_tokenizer": True}}.get(kind, {})
                try:
                    with byte_progress(f"exporting {kind} {precision}") as progress:
                        made = api.export(loaded, folder, to=kind, precision=precision, progress=progress, **given)
                except ExportError as e:
                    if kind != "gguf" or options["runtimes"] is not None:
                        raise
                    notes([f"no {kind} rows: {e}"])  # llama.cpp has some architectures, and this is none of them
                    continue
                notes(made.notes[len(loaded.notes) :])
                folders.append(str(folder))
        execute(sources_for(options, folders, model), model, options)
