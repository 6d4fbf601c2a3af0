"""`edgeformer generate`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgeformer.cli._common import allow_unread, as_json, default_threads, print_json, threads_option


@click.command(
    name="generate",
    epilog='Examples:  edgeformer generate models/stdlib-5m -p "def main("  ·  ... --temperature 0.8 --top-p 0.95 --seed 1',
)
@click.argument("model")
@click.option("-p", "--prompt", default=None, help="Text to continue.")
@click.option("--ids", default=None, help="Token ids to continue, separated by commas; for models without a tokenizer.")
@click.option("-n", "--gen", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens to generate.")
@click.option(
    "--runtime", default=None, help="What runs the model. [default: onnxruntime, or the first that opens the artefact]"
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of weights (mlx: and arithmetic) where a runtime opens a checkpoint.",
)
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", default=0, show_default=True, help="0 keeps all tokens.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--min-p", default=0.0, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=None, help="Of the sampling.")
@threads_option
@allow_unread
@as_json
def command(
    model: str,
    prompt: str | None,
    ids: str | None,
    gen: int,
    runtime: str | None,
    precision: str,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    threads: int | None,
    allow_unread_config: bool,
    as_json: bool,
) -> None:
    """Continue a prompt with MODEL (a checkpoint or an artefact), streaming the text.

    An encoder–decoder model reads the prompt and writes its answer.
    """
    import numpy as np

    from edgeformer.errors import InputError
    from edgeformer.generate import load_tokenizer, stream_ids, stream_text
    from edgeformer.sampling import Sampling
    from edgeformer.special_tokens import decoder_start

    if (prompt is None) == (ids is None):
        raise InputError("give a prompt with -p, or token ids with --ids")
    sampling = Sampling(temperature, top_k, top_p, min_p, seed)

    def encode(folder: Path | None) -> list[int]:
        return load_tokenizer(folder).encode(prompt).ids if ids is None else _parse(ids)

    with tempfile.TemporaryDirectory(prefix="edgeformer-") as scratch:
        threads = default_threads(threads)
        session, folder = _open(
            model,
            runtime,
            threads,
            allow_unread_config,
            scratch,
            precision,
            lambda folder: len(encode(folder)) + gen,
        )
        if session.spec.task == "feature-extraction":
            raise InputError(f"{model} is an encoder; it does not generate text")
        tokenizer, start = load_tokenizer(folder) if ids is None else None, encode(folder)
        reads = session.spec.task == "text2text-generation"
        if reads:  # the prompt is what is read; writing begins with a token of its own
            session.source(np.array([start], np.int64))
            start = [decoder_start(folder)]
        stream = stream_ids(session, start, gen, sampling, _stops(folder))
        if as_json:
            made = list(stream)
            print_json({"prompt_ids": start, "ids": made, "text": tokenizer and tokenizer.decode(made)})
        elif tokenizer is None:
            click.echo(",".join(map(str, stream)))
        else:
            click.echo("" if reads else prompt, nl=False)
            for piece in stream_text(tokenizer, stream, [] if reads else start):
                click.echo(piece, nl=False)
            click.echo()


def _parse(ids: str) -> list[int]:
    from edgeformer.errors import InputError

    try:
        return [int(i) for i in ids.split(",")]
    except ValueError:
        raise InputError(f"--ids takes integers separated by commas, not {ids!r}") from None


def _open(
    model: str,
    runtime: str | None,
    threads: int,
    allow: bool,
    scratch: str,
    precision: str,
    needed: Callable[[Path | None], int],
) -> tuple[Any, Path | None]:
    """The session, and the folder with the tokenizer. `needed(folder)` is how many tokens the cache must hold: a cache of a
    128k model's whole context would take gigabytes."""
    from edgeformer import api
    from edgeformer.bundle import MANIFEST, read_manifest
    from edgeformer.cli._common import load_model
    from edgeformer.runtimes._protocol import Options, first_that_opens, require

    artefact = (Path(model) / MANIFEST).exists()
    kind = read_manifest(model).get("format", "onnx") if artefact else "checkpoint"
    runtime = runtime or ("onnxruntime" if kind == "checkpoint" else first_that_opens(kind))
    made, variant = require(runtime)

    def options(folder: Path | None) -> Options:
        return Options(threads=threads, variant=variant, precision=precision, capacity=needed(folder))

    if kind != "checkpoint" and made.takes(kind):
        return made.open(Path(model), options(Path(model))), Path(model)
    loaded = load_model(model, allow)  # an artefact for another runtime is a MODEL, too
    if made.opens == "checkpoint":
        return made.open(loaded, options(loaded.folder)), loaded.folder
    folder = Path(scratch) / "model"
    given = {"no_tokenizer": True} if made.opens == "gguf" else {}
    api.export(loaded, folder, to=made.opens, **given)
    return made.open(folder, options(loaded.folder)), loaded.folder


def _stops(folder: Path | None) -> frozenset[int]:
    """The end-of-text ids of generation_config.json or config.json."""
    from edgeformer.special_tokens import special_ids

    eos = special_ids(folder)["eos"]
    return frozenset() if eos is None else frozenset(eos if isinstance(eos, list) else [eos])
