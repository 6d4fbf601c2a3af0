"""`edgeformer compare`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from edgeformer.cli._bench import bench_options, chosen_runtimes, execute
from edgeformer.cli._common import OutputFolder, byte_progress


@click.command(
    name="compare",
    epilog="Examples:  edgeformer compare models/stdlib-5m  ·  edgeformer compare MODEL --precisions fp32,q8,q4 --json rows.jsonl"
    " --report report.html  ·  edgeformer compare MODEL --host user@mac",
)
@click.argument("model")
@click.option(
    "--precisions",
    default="fp32",
    show_default=True,
    help="Precisions of the exports, comma-separated: fp32, bf16, fp16; q4, q8; for MLX also 4bit, 8bit.",
)
@click.option(
    "-o", "--output", type=OutputFolder(), default=None, help="Keep the artefacts in this folder. [default: the cache]"
)
@click.option(
    "--weights",
    type=click.Choice(["copy", "link"]),
    default="copy",
    show_default=True,
    help="As in `edgeformer export`.",
)
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    default=None,
    help="Of ONNX exports in q4 and q8, as in `edgeformer export`; llama.cpp and `native` always round activations to int8.",
)
@bench_options
def command(
    model: str, precisions: str, output: str | None, weights: str, accuracy_level: str | None, **options: Any
) -> None:
    """Export MODEL, check every build against the original, and measure all of them in one table.

    Artefacts are built once and kept in the cache (`edgeformer cache`).
    """
    from edgeformer.errors import InputError
    from edgeformer.measure.comparison import compare

    if options["host"] is not None:
        from edgeformer.cli._host import run_there

        named = {"--precisions": precisions, "--weights": weights, "--accuracy-level": accuracy_level}
        run_there("compare", [model], named, options)
        return
    wanted = tuple(dict.fromkeys(p.strip() for p in precisions.split(",") if p.strip()))
    if not wanted:
        raise InputError("--precisions is empty; give one or more of fp32, bf16, fp16, q4, q8")
    measure = partial(
        compare,
        model,
        runtimes=chosen_runtimes(options),
        precisions=wanted,
        output=None if output is None else Path(output),
        weights=weights,
        accuracy_level=None if accuracy_level is None else int(accuracy_level),
        progress=byte_progress,
    )
    execute(measure, model, options)
