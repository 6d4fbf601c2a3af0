"""`edgeformer bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeformer.cli._bench import bench_options, execute, plans_for_artefact, plans_for_checkpoint
from edgeformer.cli._common import load_model


@click.command(
    name="bench",
    epilog="Examples:  edgeformer bench build/m --against MODEL --threads 2  ·  edgeformer bench MODEL --runtime torch,numpy",
)
@click.argument("sources", metavar="MODEL|ARTEFACT...", nargs=-1, required=True)
@click.option("--runtime", "runtimes", default=None, help="Runtimes, separated by commas. [default: all that fit]")
@click.option("--against", default=None, help="The original MODEL to check artefacts against. Without it rows are unchecked.")
@bench_options
def command(sources: tuple[str, ...], runtimes: str | None, against: str | None, **options: Any) -> None:
    """Measure latency, one fresh process per row, rounds interleaved. Rows are ranked only if their output was checked."""
    from edgeformer import bundle
    from edgeformer.errors import InputError
    from edgeformer.spec import digest

    chosen = None if runtimes is None else [r.strip() for r in runtimes.split(",") if r.strip()]
    plans, specs, original = [], {}, against
    for source in sources:
        if (Path(source) / bundle.MANIFEST).exists() or (Path(source).is_dir() and next(Path(source).glob("*.onnx"), None)):
            manifest = bundle.read_manifest(source)
            spec = bundle.read_spec(source)
            plans += plans_for_artefact(source, manifest, spec, chosen, many=len(sources) > 1)
        else:
            spec = load_model(source, options["allow_unread_config"]).spec
            original = original or source
            plans += plans_for_checkpoint(source, spec, chosen, options)
        specs[digest(spec)] = spec
    if len(specs) > 1:
        raise InputError(f"one run compares one architecture; these are {len(specs)}: {', '.join(sources)}")
    execute(plans, next(iter(specs.values())), original, options)
