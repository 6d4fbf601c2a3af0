"""`edgeformer generate`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
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
    threads_option,
    trust_code,
)
from edgeformer.files.quoting import plain
from edgeformer.weights.precision import FLOAT_TYPES


@click.command(
    name="generate",
    epilog='Examples:  edgeformer generate models/stdlib-5m -p "def main("  ·  ... --temperature 0.8 --top-p 0.95 --seed 1  ·  '
    'edgeformer generate MODEL --chat -p "What is a monad?"',
)
@click.argument("model")
@click.option(
    "-p", "--prompt", "prompts", multiple=True, help="Text to continue; repeatable, prompts run one after the other."
)
@click.option("--ids", default=None, help="Comma-separated token ids to continue; for models without a tokenizer.")
@click.option("--chat", is_flag=True, help="Treat the prompt as a user message and apply the model's chat template.")
@click.option("--system", default=None, help="With --chat: the system message.")
@click.option("-n", "--gen", type=SIZE, default=64, show_default=True, help="Tokens to generate.")
@click.option(
    "--runtime", default=None, help="Runtime to use. [default: onnxruntime, or the first that opens the artefact]"
)
@click.option(
    "--precision",
    type=click.Choice(tuple(FLOAT_TYPES)),
    default="fp32",
    show_default=True,
    help="Of weights (mlx: and arithmetic), for runtimes that open a checkpoint.",
)
@click.option(
    "--temperature", type=float, default=None, help="0 is greedy. [default: the model's generation_config.json, or 0]"
)
@click.option("--top-k", type=int, default=None, help="0 keeps all tokens. [default: the model's, or 0]")
@click.option("--top-p", type=float, default=None, help="[default: the model's, or 1]")
@click.option("--min-p", type=float, default=None, help="[default: the model's, or 0]")
@click.option("--seed", type=SEED, default=None, help="Seed for sampling.")
@threads_option
@allow_unread
@allow_nonfinite
@trust_code
@as_json
def command(
    model: str,
    prompts: tuple[str, ...],
    ids: str | None,
    chat: bool,
    system: str | None,
    gen: int,
    runtime: str | None,
    precision: str,
    threads: int | None,
    allow_unread_config: bool,
    allow_nonfinite: bool,
    as_json: bool,
    **choice: float | None,
) -> None:
    """Continue a prompt with MODEL (a checkpoint or an artefact), streaming the text.

    Tokens are chosen according to the model's generation_config.json: sampled or greedy, with its penalties and forbidden
    words. An encoder–decoder model encodes the prompt and decodes its answer.
    """
    from edgeformer.checkpoint.companions.generation import generation_defaults
    from edgeformer.checkpoint.companions.tokenizer import load_tokenizer
    from edgeformer.errors import InputError
    from edgeformer.spec.task import Task

    if bool(prompts) == (ids is not None):
        raise InputError("give a prompt with -p, or token ids with --ids")
    if (chat and ids is not None) or (system is not None and not chat):
        raise InputError("--chat needs a prompt with -p, and --system needs --chat")
    opened = _Opened(model, runtime, default_threads(threads), precision, allow_unread_config, allow_nonfinite)
    defaults = generation_defaults(opened.around)
    notes([*special_notes(opened.around), *defaults.notes])
    given = {name: value for name, value in choice.items() if value is not None}
    if given.get("temperature") == 0:
        given = {**given, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    sampling = replace(defaults.sampling, **given)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(opened.around) if ids is None else None
    if tokenizer is None:
        asked = [("", _parse(ids or ""))]
    elif chat:
        texts = [_chat_text(opened, tokenizer, prompt, system) for prompt in prompts]
        asked = [(text, tokenizer.encode(text, special=False)) for text in texts]
    else:
        asked = [(prompt, tokenizer.encode(prompt)) for prompt in prompts]
    made = []
    with opened.session(max(len(start) for _, start in asked) + gen) as session:
        if session.spec.task == Task.FEATURE_EXTRACTION:
            raise InputError(f"{model} is an encoder; it does not generate text")
        for prompt, start in asked:
            made.append(_generate(opened, session, tokenizer, prompt, start, gen, sampling, as_json, chat))
    if as_json:
        print_json(made[0] if len(made) == 1 else made)


def _chat_text(opened: _Opened, tokenizer: Any, prompt: str, system: str | None) -> str:
    """A user message rendered with the model's chat template."""
    from edgeformer.checkpoint.companions.chat import DEFAULT, chat_templates, render
    from edgeformer.errors import InputError

    template = chat_templates(opened.around).get(DEFAULT)
    if template is None:
        raise InputError(f"{opened.model} has no chat template; leave out --chat and give the whole prompt with -p")
    messages = [{"role": "system", "content": system}] if system is not None else []
    return render(template, [*messages, {"role": "user", "content": prompt}], tokenizer.named)


def _generate(
    opened: _Opened,
    session: Any,
    tokenizer: Any,
    prompt: str,
    start: list[int],
    gen: int,
    sampling: Any,
    quiet: bool,
    chat: bool,
) -> dict[str, Any]:
    """Continue one prompt, streaming to stdout unless `quiet`."""
    import numpy as np

    from edgeformer.checkpoint.companions.special import decoder_start, special_ids
    from edgeformer.inference.generate import stream_ids, stream_text
    from edgeformer.spec.task import Task

    begin = start
    reads = session.spec.task == Task.TEXT2TEXT_GENERATION
    if reads:  # the prompt goes to the encoder; decoding begins with the decoder start token
        session.source(np.array([start], np.int64))
        begin = [decoder_start(opened.around)]
    stream = stream_ids(session, begin, gen, sampling, frozenset(special_ids(opened.around).eos))
    if quiet:
        made = list(stream)
        return {"prompt_ids": start, "ids": made, "text": tokenizer and tokenizer.decode(made)}
    if tokenizer is None:
        click.echo(",".join(map(str, stream)))
        return {}
    # control characters act on a terminal; a file gets the text unchanged
    shown = plain if sys.stdout.isatty() else str
    click.echo(shown("" if reads or chat else prompt), nl=False)
    for piece in stream_text(tokenizer, stream, [] if reads or chat else begin):
        click.echo(shown(piece), nl=False)
    click.echo()
    return {}


def _parse(ids: str) -> list[int]:
    from edgeformer.errors import InputError

    try:
        return [int(i) for i in ids.split(",")]
    except ValueError:
        raise InputError(f"--ids takes comma-separated integers, not {ids!r}") from None


def special_notes(around: Any) -> list[str]:
    """Notes on special token ids that the model's files disagree about."""
    from edgeformer.checkpoint.companions.special import special_ids

    return special_ids(around).notes


class _Opened:
    """A MODEL or artefact with its runtime; the session is opened once the sequence length is known."""

    def __init__(self, model: str, runtime: str | None, threads: int, precision: str, allow: bool, nonfinite: bool):
        from edgeformer.checkpoint.bundle import MANIFEST, read_manifest, read_spec
        from edgeformer.checkpoint.companions.files import companions_of
        from edgeformer.inference.lookup import first_that_opens, require

        self.model, self.threads, self.precision = model, threads, precision
        artefact = (Path(model) / MANIFEST).exists()
        self.kind = read_manifest(model).get("format", "onnx") if artefact else "checkpoint"
        name = runtime or ("onnxruntime" if self.kind == "checkpoint" else first_that_opens(self.kind))
        self.runtime, self.variant = require(name)
        self.direct = self.kind != "checkpoint" and self.runtime.takes(self.kind)
        # an artefact that this runtime can't open itself is loaded as a MODEL
        self.loaded = None if self.direct else load_model(model, allow, nonfinite)
        self.around = companions_of(Path(model), read_spec(model).vocab) if self.loaded is None else self.loaded.around

    @contextlib.contextmanager
    def session(self, capacity: int) -> Iterator[Any]:
        """A session whose KV cache holds `capacity` tokens: a 128k model's whole context would take gigabytes."""
        from edgeformer import api
        from edgeformer.files.scratch import temporary_folder
        from edgeformer.inference.runtime import Options

        options = Options(threads=self.threads, variant=self.variant, precision=self.precision, capacity=capacity)
        if self.loaded is None:
            yield self.runtime.open(Path(self.model), options)
        elif self.runtime.opens == "checkpoint":
            yield self.runtime.open(self.loaded, options)
        else:
            with temporary_folder() as scratch:
                folder = scratch / "model"
                given = {"no_tokenizer": True} if self.runtime.opens == "gguf" else {}
                api.export(self.loaded, folder, to=self.runtime.opens, **given)
                yield self.runtime.open(folder, options)
