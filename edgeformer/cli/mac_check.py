"""`edgeformer mac-check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from edgeformer.cli._common import ROUNDS, allow_unread, as_json, echo, load_model, status


@click.command(
    name="mac-check",
    epilog="Example:  edgeformer mac-check models/stdlib-5m -o mac-check.json",
)
@click.argument("model")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    default="mac-check.json",
    show_default=True,
    help="File for the record; - for stdout.",
)
@click.option(
    "--parts",
    default=None,
    help="Comma-separated: kernels, fused_attention, tune, parity, generation, bench. [default: all]",
)
@click.option("--rounds", type=ROUNDS, default=5, show_default=True, help="Rounds of each measurement.")
@click.option(
    "--anywhere", is_flag=True, help="Also run on a machine without an Apple GPU: the parts that don't need one."
)
@allow_unread
@as_json
def command(
    model: str, output: str, parts: str | None, rounds: int, anywhere: bool, allow_unread_config: bool, as_json: bool
) -> None:
    """Check and measure everything on a Mac in one run: the Metal kernels against float64, which of them pay off, parity of all
    builds, generation compared with mlx-lm, latency rows. Writes one file to share. Exit code 1 if any part fails."""
    from edgeformer.errors import InputError
    from edgeformer.files.atomic import write_output
    from edgeformer.measure.mac import PARTS, failed, mac_check

    chosen = PARTS if parts is None else tuple(dict.fromkeys(p.strip() for p in parts.split(",") if p.strip()))
    if not chosen:
        raise InputError(f"--parts is empty; parts are {', '.join(PARTS)}")
    if unknown := [p for p in chosen if p not in PARTS]:
        raise InputError(f"--parts has {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    loaded = load_model(model, allow_unread_config)
    loaded.require_weights()
    file = None if output == "-" else Path(output)
    with status("starting") as report:
        record = mac_check(
            loaded,
            parts=chosen,
            anywhere=anywhere,
            rounds=rounds,
            report=report,
            keep=lambda r: (
                None if file is None else write_output(file, _text(r), folders=True)
            ),  # after every part: a run may be interrupted
        )
    if as_json or file is None:
        echo(_text(record), nl=False)
    else:
        for name, part in record["parts"].items():
            echo(f"{name}: {part['status']}{_why(part)}")
        echo(f"written: {file}")
    if failed(record):
        sys.exit(1)


def _text(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1, default=str) + "\n"


def _why(part: dict[str, Any]) -> str:
    if "reason" in part:
        return f" ({part['reason']})"
    if part["status"] == "fail":
        return " (see the record)"
    return ""
