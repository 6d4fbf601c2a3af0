"""`edgeformer quantize`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from edgeformer.cli._common import (
    SIZE,
    OutputFolder,
    allow_unread,
    as_json,
    byte_progress,
    count_progress,
    echo,
    load_model,
    notes,
    print_json,
    size,
    text_table,
    without_head_option,
)
from edgeformer.files.limits import MAX_SIZE


@click.command(
    name="quantize",
    epilog="Examples:  edgeformer quantize models/stdlib-5m -o build/q4  ·  edgeformer quantize MODEL -o DIR --format q8  ·"
    "  edgeformer quantize MODEL -o DIR --method gptq --calibration text.txt  ·"
    "  edgeformer quantize MODEL -o DIR --budget 5.5 --calibration text.txt",
)
@click.argument("model")
@click.option(
    "-o", "--output", required=True, type=OutputFolder(), help="Folder to write; it appears only when complete."
)
@click.option(
    "--format",
    "format_",
    default=None,
    type=click.Choice(["q4", "q8"]),
    help="Of linear layers and embeddings. [default: q4]",
)
@click.option(
    "--method",
    default=None,
    help="rtn: round to nearest, bit-identical to llama.cpp's own Q4_0 and Q8_0. search: scales with the least error."
    " gptq, awq: calibrated on text; they run the model in torch. [default: search; with --calibration gptq]",
)
@click.option(
    "--calibration",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="UTF-8 text like the model's future input; repeatable. Not the text that quality is measured on.",
)
@click.option("--samples", type=SIZE, default=128, show_default=True, help="Windows of the calibration text.")
@click.option("--window", type=click.IntRange(8, MAX_SIZE), default=512, show_default=True, help="Tokens per window.")
@click.option(
    "--budget",
    type=float,
    default=None,
    help="Mix q4 and q8: this many bits per weight, scales included; the most sensitive parts get q8. Needs --calibration.",
)
@click.option("--powers-of-two", is_flag=True, help="awq: use scales that fold exactly, bit for bit.")
@click.option("--keep", multiple=True, metavar="PATTERN", help="Tensors to leave unquantized, such as 'head.*'.")
@click.option("--force", is_flag=True, help="Replace OUTPUT even if it is not an artefact.")
@allow_unread
@without_head_option
@as_json
def command(
    model: str,
    output: str,
    format_: str | None,
    method: str | None,
    calibration: tuple[str, ...],
    samples: int,
    window: int,
    budget: float | None,
    powers_of_two: bool,
    keep: tuple[str, ...],
    force: bool,
    allow_unread_config: bool,
    without_head: bool,
    as_json: bool,
) -> None:
    """Quantize MODEL to q4 or q8: groups of 32 that ONNX Runtime, MLX, llama.cpp and PyTorch hold bit for bit. The output is a
    MODEL, too: export it, verify against it, compare it. After an interruption, the same command resumes."""
    from edgeformer.errors import InputError
    from edgeformer.quantization.run import quantize

    loaded = load_model(model, allow_unread_config, without_head=without_head)
    ids, about = None, {}
    if calibration:
        ids, about = _calibration(loaded, calibration, samples, window)
    method = method or ("gptq" if calibration else "search")
    if powers_of_two and method != "awq":
        raise InputError("--powers-of-two needs --method awq")
    formats: dict[str, Any] | None = None
    if budget is not None:
        if format_ is not None or ids is None:
            raise InputError(
                "--budget chooses q4 or q8 itself, by the loss on --calibration text: give --calibration and no --format"
            )
        formats, about["units"] = _mixed(loaded, ids, budget, keep, as_json)
        about["budget"] = budget
    with byte_progress("quantizing") as progress:
        made = quantize(
            loaded,
            output,
            format=format_ or "q4",
            method=method,
            ids=ids,
            formats=formats,
            keep=keep,
            options={"powers_of_two": True} if powers_of_two else {},
            about=about,
            force=force,
            progress=progress,
        )
    notes(made.notes)
    if as_json:
        print_json({"folder": str(made.folder), **made.manifest})
        return
    written = sum(made.manifest["files"].values())
    echo(f"{made.folder}: {size(written)} written, {made.bits_per_weight:.2f} bits per weight, by {method}")


def _calibration(loaded: Any, files: tuple[str, ...], samples: int, window: int) -> tuple[Any, dict[str, Any]]:
    """The windows of the calibration text, and their entry in the manifest."""
    import numpy as np

    from edgeformer.checkpoint.companions.text_file import ids_of
    from edgeformer.quantization.calibration import calibration_windows

    ids = np.concatenate([ids_of(file, loaded.around) for file in files])
    chosen = calibration_windows(ids, window, samples, loaded.spec.context, loaded.spec.vocab)
    return chosen, {"calibration": {"files": [Path(f).name for f in files], "windows": list(chosen.shape)}}


def _mixed(loaded: Any, ids: Any, budget: float, keep: tuple[str, ...], quiet: bool) -> tuple[dict[str, Any], list]:
    """The formats within a budget; prints the choice unless `quiet`."""
    from dataclasses import asdict

    from rich.console import Console

    from edgeformer.quantization.sensitivity import mixed

    with count_progress("measuring each part's sensitivity to q4") as progress:
        formats, units = mixed(loaded, ids, budget, keep=keep, progress=progress)
    if not quiet:
        table = text_table("tensors", "weights", "KL if q4", "format", title=f"{budget} bits per weight")
        for unit in units:
            table.add_row(
                ", ".join(n.removesuffix(".weight") for n in unit.names),
                f"{unit.weights:,}",
                f"{unit.harm:.1e}",
                unit.format,
            )
        (Console() if sys.stdout.isatty() else Console(width=120)).print(table)
    return formats, [asdict(unit) for unit in units]
