"""`edgeformer export`."""

from __future__ import annotations

from typing import Any

import click

from edgeformer.cli._common import (
    SIZE,
    OutputFolder,
    allow_nonfinite,
    allow_unread,
    as_json,
    byte_progress,
    echo,
    load_model,
    notes,
    print_json,
    size,
    without_head_option,
)
from edgeformer.exporters import formats
from edgeformer.files.limits import MAX_SIZE
from edgeformer.weights.precision import FLOAT_TYPES


@click.command(
    name="export",
    epilog="Examples:  edgeformer export models/stdlib-5m -o build/m  ·  edgeformer export MODEL -o DIR --weights link  ·"
    "  edgeformer export MODEL -o DIR --to mlx --precision q4",
)
@click.argument("model")
@click.option(
    "-o", "--output", required=True, type=OutputFolder(), help="Folder to write; it appears only when complete."
)
@click.option("--to", "kind", default="onnx", type=click.Choice(formats()), show_default=True, help="Format.")
@click.option(
    "--precision",
    default=None,
    help="fp32, fp16, bf16; q4, q8: groups of 32, the same bits in every runtime (a checkpoint that isn't quantized yet is"
    " rounded to nearest). onnx: fp16 applies to weights and arithmetic, bf16 to weights only; q4f16 and q8f16 compute in fp16."
    " mlx: 4bit, 8bit are MLX's own affine quantization. [default: onnx fp32, mlx as stored, coreai fp16; a quantized checkpoint"
    " unchanged]",
)
@click.option(
    "--group-size", type=click.Choice(["32", "64", "128"]), default=None, help="mlx: weights per scale. [default: 64]"
)
@click.option(
    "--dtype",
    type=click.Choice(tuple(FLOAT_TYPES)),
    default=None,
    help="mlx, 4bit and 8bit: dtype of scales, of unquantized tensors and of the arithmetic. [default: as stored]",
)
@click.option(
    "--stock",
    is_flag=True,
    help="mlx: refuse an architecture without an mlx-lm model type, instead of shipping its code.",
)
@click.option(
    "--target",
    default=None,
    help="onnx: cpu, cuda, webgpu, coreml (ONNX Runtime's execution providers), web (a transformers.js folder),"
    " portable (plain ai.onnx operators, any runtime). [default: cpu]",
)
@click.option(
    "--weights",
    default=None,
    type=click.Choice(["copy", "link"]),
    help="onnx: copy writes a self-contained folder; link references the checkpoint's files. [default: copy]",
)
@click.option("--context", type=SIZE, default=None, help="onnx: longest sequence. [default: the model's]")
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    default=None,
    help="onnx, q4 and q8: 0 multiplies dequantized weights; 4 rounds activations to int8 first: faster on CPUs, less exact"
    " (`edgeformer quality` measures the loss). [default: 0; 4 for q8 on the target cpu, which has no fast kernel for it at 0]",
)
@click.option(
    "--keep", multiple=True, metavar="PATTERN", help="q4, q8: tensors to leave unquantized, such as 'head.*'."
)
@click.option(
    "--kv",
    type=click.Choice(["int8"]),
    default=None,
    help="onnx: keep the KV cache in int8, with scales measured on --calibration text. [default: the compute dtype]",
)
@click.option(
    "--calibration", type=click.Path(exists=True, dir_okay=False), default=None, help="UTF-8 text for --kv int8."
)
@click.option(
    "--windowed-cache",
    is_flag=True,
    help="onnx, target cpu: KV caches of layers with a sliding window hold the window only, which saves memory and time in long"
    " sequences. Needs ONNX Runtime 1.29 or newer.",
)
@click.option(
    "--eos-id",
    "eos",
    multiple=True,
    type=click.IntRange(0, MAX_SIZE),
    help="onnx: the EOS token id, if no file of the model defines it (ONNX Runtime GenAI requires one); repeatable.",
)
@click.option("--no-tokenizer", is_flag=True, help="gguf: leave out the tokenizer.")
@click.option("--inline", is_flag=True, help="onnx: inline fused ops, for runtimes without ONNX functions.")
@click.option("--force", is_flag=True, help="Replace OUTPUT even if it is not an artefact.")
@allow_unread
@without_head_option
@allow_nonfinite
@as_json
def command(
    model: str,
    output: str,
    kind: str,
    allow_unread_config: bool,
    without_head: bool,
    allow_nonfinite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Export MODEL. onnx: a folder for ONNX Runtime, ONNX Runtime GenAI and Optimum, or with --target for transformers.js
    and others. mlx: a folder that mlx-lm loads. gguf: a file for llama.cpp. hf: a folder that transformers loads."""
    from edgeformer.api import export

    options = {name: value for name, value in given.items() if value not in (None, False, ())}
    for name in {"group_size", "accuracy_level"} & options.keys():
        options[name] = int(options[name])
    loaded = load_model(model, allow_unread_config, allow_nonfinite, without_head=without_head)
    _cache(loaded, kind, options)
    with byte_progress("writing weights") as progress:
        made = export(loaded, output, to=kind, progress=progress, **options)
    notes(made.notes[len(loaded.notes) :])
    if as_json:
        print_json({"folder": str(made.folder), **made.manifest})
        return
    written = sum(made.manifest["files"].values())
    linked = sum(entry["bytes"] for entry in made.manifest["linked"].values())
    echo(f"{made.folder}: {size(written)} written" + (f", {size(linked)} linked" if linked else ""))
    echo(f"check it: edgeformer verify {made.folder} --against {model}{' --without-head' if without_head else ''}")


def _cache(loaded: Any, kind: str, options: dict[str, Any]) -> None:
    """Replace the options `kv` and `calibration` by `cache_scales`, the scales of an int8 KV cache."""
    from edgeformer.errors import InputError

    kv, text = options.pop("kv", None), options.pop("calibration", None)
    if (kv is None) != (text is None) or (kv is not None and kind != "onnx"):
        raise InputError("--kv int8 and --calibration FILE need each other, and --to onnx")
    if kv is None:
        return
    from edgeformer.checkpoint.companions.text_file import ids_of
    from edgeformer.quantization.calibration import calibration_windows
    from edgeformer.quantization.kv_scales import cache_scales

    ids = calibration_windows(ids_of(text, loaded.around), 512, 32, loaded.spec.context, loaded.spec.vocab)
    options["cache_scales"] = cache_scales(loaded, ids)
