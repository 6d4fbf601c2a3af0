"""`edgeformer tune`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import click

from edgeformer.cli._common import ROUNDS, SIZE, allow_unread, as_json, echo, load_model, print_json, status, text_table
from edgeformer.weights.precision import FLOAT_TYPES


@click.command(
    name="tune", epilog="Example:  edgeformer tune build/mlx-4bit  ·  edgeformer tune MODEL --precision fp16"
)
@click.argument("model")
@click.option(
    "--precision",
    type=click.Choice(tuple(FLOAT_TYPES)),
    default=None,
    help="Of activations and unquantized weights; quantized weights are unchanged. The choice holds for this precision."
    " [default: an exported folder's own, else bf16]",
)
@click.option("--rounds", type=ROUNDS, default=5, show_default=True, help="Interleaved rounds.")
@click.option("--steps", type=SIZE, default=64, show_default=True, help="Decode steps per round.")
@allow_unread
@as_json
def command(
    model: str, precision: str | None, rounds: int, steps: int, allow_unread_config: bool, as_json: bool
) -> None:
    """Measure which Metal kernels make MODEL's decode steps faster on this machine, and store the choice.

    The runtime `mlx` uses the kernels chosen for this chip, MLX version, architecture and precision; `mlx:kernels` uses all,
    `mlx:ops` none.
    """
    from edgeformer.checkpoint.bundle import MANIFEST, read_manifest
    from edgeformer.inference.lookup import require
    from edgeformer.runtimes.mlx import tune_here

    require("mlx")  # before the import that needs it
    from edgeformer.backends.mlx.metal import _choice

    loaded = load_model(model, allow_unread_config)
    if precision is None:
        exported = (Path(model) / MANIFEST).exists()
        precision = read_manifest(model)["compute"] if exported else "bf16"
    with status("loading") as report:
        assert precision is not None
        made = tune_here(loaded, precision, rounds=rounds, steps=steps, report=report)
    if as_json:
        print_json({"machine": _choice.machine(), "precision": precision, **made.as_dict()})
        return
    _show(made)
    echo(f"saved in {_choice.file()}: the runtime mlx will use it for this model in {precision} on {_choice.machine()}")


def _show(made: Any) -> None:
    from rich.console import Console

    title = f"step time without / with each kernel, {made.step_s * 1e3:.2f} ms per step without kernels"
    table = text_table("kernel", "median", "range", "logits differ by", "", title=title)
    for name in {**made.errors}:
        if name in made.wrong:
            table.add_row(name, "-", "-", f"{made.errors[name]:.1e}", "wrong: not used")
            continue
        ratios = made.ratios[name]
        chosen = "chosen" if set(name.split(" + ")) <= set(made.chosen) else "not used"
        spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
        table.add_row(name, f"{statistics.median(ratios):.3f}", spread, f"{made.errors[name]:.1e}", chosen)
    Console().print(table)
