"""`edgeformer verify`."""

from __future__ import annotations

import sys
from typing import Any

import click

from edgeformer.cli._common import (
    SEED,
    SIZE,
    allow_nonfinite,
    allow_unread,
    as_json,
    default_threads,
    load_model,
    notes,
    print_json,
    text_table,
    threads_option,
    trust_code,
    without_head_option,
)
from edgeformer.files.limits import MAX_SIZE


@click.command(name="verify", epilog="Example:  edgeformer verify build/m --against models/stdlib-5m --text some.txt")
@click.argument("artefact", type=click.Path())
@click.option("--against", required=True, help="The MODEL that ARTEFACT was made from.")
@click.option("--runtime", default=None, help="Runtime to use. [default: the first installed one that opens it]")
@click.option(
    "--length",
    type=click.IntRange(4, MAX_SIZE),
    default=160,
    show_default=True,
    help="Positions whose logits are compared.",
)
@click.option("--gen", type=SIZE, default=64, show_default=True, help="Greedy tokens to generate and compare.")
@click.option(
    "--text", type=click.Path(exists=True, dir_okay=False), help="Compare on this text instead of random ids."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the random ids.")
@threads_option
@allow_unread
@without_head_option
@allow_nonfinite
@trust_code
@as_json
def command(
    artefact: str,
    against: str,
    runtime: str | None,
    length: int,
    gen: int,
    text: str | None,
    seed: int,
    threads: int | None,
    allow_unread_config: bool,
    without_head: bool,
    allow_nonfinite: bool,
    as_json: bool,
) -> None:
    """Check that ARTEFACT's outputs match the original's; the verdict goes into its manifest. Exit code 1 if they don't."""
    from edgeformer.checkpoint.companions.text_file import ids_of
    from edgeformer.errors import VerificationFailed
    from edgeformer.verification.parity import verify
    from edgeformer.verification.verdict import FAIL

    loaded = load_model(against, allow_unread_config, allow_nonfinite, without_head=without_head)
    made = verify(
        artefact,
        loaded,
        runtime=runtime,
        length=length,
        generate=gen,
        threads=default_threads(threads),
        seed=seed,
        ids=None if text is None else ids_of(text, loaded.around, length),
    )
    if as_json:
        print_json(made.as_dict())
    else:
        _show(made)
    if made.verdict == FAIL:
        raise VerificationFailed(f"the outputs of {artefact} do not match those of {against}")


def _show(made: Any) -> None:
    from rich.console import Console

    title = f"{made.verdict}: {made.runtime} against {made.reference}, {made.positions} positions"
    table = text_table("check", "verdict", "max |difference|", "limit", "top-1", "mean KL", "note", title=title)
    for c in made.checks:
        numbers = (f"{x:.2e}" if x is not None else "-" for x in (c.max_abs, c.limit))
        table.add_row(
            c.name,
            c.verdict,
            *numbers,
            "-" if c.top1 is None else f"{c.top1:.2%}",
            "-" if c.kl_mean is None else f"{c.kl_mean:.1e}",
            c.note,
        )
    (Console() if sys.stdout.isatty() else Console(width=160)).print(table)
    notes(made.notes)
