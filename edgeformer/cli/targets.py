"""`edgeformer targets`."""

from __future__ import annotations

import sys

import click

from edgeformer.cli._common import allow_unread, as_json, load_model, print_json, text_table, without_head_option


@click.command(
    name="targets", epilog="Examples:  edgeformer targets models/stdlib-5m  ·  edgeformer targets smollm2-135m --json"
)
@click.argument("model")
@allow_unread
@without_head_option
@as_json
def command(model: str, allow_unread_config: bool, without_head: bool, as_json: bool) -> None:
    """Show which formats and runtimes support MODEL, at which precision, and why others don't: from its architecture, before any
    work. `checkpoint` stands for the runtimes that build the spec themselves."""
    from edgeformer.advise.compatibility import answers

    found = answers(load_model(model, allow_unread_config, without_head=without_head))
    if as_json:
        print_json([answer.as_dict() for answer in found])
        return
    from rich.console import Console

    table = text_table("format", "precisions", "runtimes (not installed)", "reasons and notes", show_lines=True)
    for answer in found:
        runtimes = ", ".join(name if there else f"({name})" for name, there in answer.runtimes.items())
        reasons = [f"{precision}: {why}" if precision else why for precision, why in answer.refused.items()]
        table.add_row(
            answer.name, " ".join(answer.precisions) or "-", runtimes or "-", "\n".join([*reasons, *answer.notes])
        )
    (Console() if sys.stdout.isatty() else Console(width=180)).print(table)
