"""`edgeformer quality`."""

from __future__ import annotations

import sys

import click

from edgeformer.cli._common import (
    allow_nonfinite,
    allow_unread,
    as_json,
    default_threads,
    load_model,
    print_json,
    status,
    text_table,
    threads_option,
    trust_code,
)
from edgeformer.files.limits import MAX_SIZE


@click.command(
    name="quality",
    epilog="Examples:  edgeformer quality build/q4 build/q8 --against models/stdlib-5m --text models/stdlib-5m/validation.txt  ·"
    "  edgeformer quality build/onnx --against MODEL --text FILE --runtime onnxruntime --cached",
)
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--against", required=True, help="The original MODEL, run in float32.")
@click.option(
    "--text", required=True, type=click.Path(exists=True, dir_okay=False), help="UTF-8 text; not the calibration text."
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    help="Repeatable. [default: the first installed one that opens the source]",
)
@click.option(
    "--tokens",
    type=click.IntRange(2, MAX_SIZE),
    default=8192,
    show_default=True,
    help="Most tokens of the text to use.",
)
@click.option(
    "--window", type=click.IntRange(2, MAX_SIZE), default=256, show_default=True, help="Tokens of context per window."
)
@click.option("--cached", is_flag=True, help="Feed token by token through the KV cache, as in generation (slow).")
@threads_option
@allow_unread
@allow_nonfinite
@trust_code
@as_json
def command(
    sources: tuple[str, ...],
    against: str,
    text: str,
    runtimes: tuple[str, ...],
    tokens: int,
    window: int,
    cached: bool,
    threads: int | None,
    allow_unread_config: bool,
    allow_nonfinite: bool,
    as_json: bool,
) -> None:
    """Measure the quality loss of quantization: perplexity, KL divergence and flipped tokens of SOURCES (artefacts, quantized
    checkpoints), each in its runtime, against the original in float32; and how much of that is the runtime's own error."""
    from edgeformer.checkpoint.companions.text_file import ids_of
    from edgeformer.verification.quality import Settings, measure

    loaded = load_model(against, allow_unread_config, allow_nonfinite)
    settings = Settings(window=window, tokens=tokens, threads=default_threads(threads), cached=cached)
    with status("reading") as report:
        rows = measure(
            sources, loaded, ids_of(text, loaded.around), runtimes=runtimes, settings=settings, report=report
        )
    if as_json:
        print_json([row.as_dict() for row in rows])
    else:
        show(rows)


def show(rows: list) -> None:
    """Print the table."""
    from rich.console import Console

    title = f"{rows[0].against.positions} positions, against the original in float32"
    columns = ("source", "runtime", "precision", "bits/weight", "perplexity", "KL mean", "KL max", "top-1", "flips")
    table = text_table(*columns, "runtime's own KL", "its flips", title=title)
    for row in rows:
        s, own = row.against, row.runtime_error
        table.add_row(
            row.source,
            row.runtime,
            row.precision,
            "-" if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}",
            f"{s.perplexity:.3f}",
            f"{s.kl_mean:.2e}",
            f"{s.kl_max:.2e}",
            f"{s.top1:.2%}",
            str(s.flips),
            "-" if own is None else f"{own.kl_mean:.2e}",
            "-" if own is None else str(own.flips),
        )
    (Console() if sys.stdout.isatty() else Console(width=180)).print(table)
