"""What quantization costs: the deployed artefact, in its runtime, against the original in float32, on real text.

Two differences are kept apart. *Quantization error*: the original against the same quantized bits dequantized, both in float32 by
the reference runtime. *Runtime error*: those same bits against what the runtime makes of them (rounded activations, half
precision). Text is teacher-forced, so every position has one right next token and rows compare position by position.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer import bundle
from edgeformer.checkpoint import LoadedModel, load
from edgeformer.errors import ArtefactError, InputError
from edgeformer.parity import reference_runtime
from edgeformer.rounding import bits_per_weight
from edgeformer.runtimes._protocol import FORMATS, Options, Session, first_that_opens, require
from edgeformer.spec import digest

REFERENCE = "original"


@dataclass
class Scores:
    """Over every position of every window.

    perplexity: exp of the mean negative log-likelihood of the text's own next tokens. kl_*: KL(original ‖ row) in nats. top1:
    share of positions whose likeliest token is the original's; flips: how many are not.
    """

    perplexity: float
    positions: int
    kl_mean: float = 0.0
    kl_max: float = 0.0
    top1: float = 1.0
    flips: int = 0


@dataclass
class Row:
    """A source in a runtime: `against` the original; `runtime_error` against its own bits in float32 (None: they are that)."""

    source: str
    runtime: str
    precision: str
    bits_per_weight: float | None
    against: Scores
    runtime_error: Scores | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Settings:
    """How text is read.

    window: tokens seen at once, each window anew; tokens: how many in all; cached: one token at a time through the cache, as in
    generation, instead of whole windows.
    """

    window: int = 256
    tokens: int = 8192
    threads: int = 1
    cached: bool = False


def windows(ids: np.ndarray, settings: Settings, context: int) -> np.ndarray:
    """int64 [n, window] of a text's ids.

    Raises:
        InputError: the text is shorter than two tokens.
    """
    size = min(settings.window, context, len(ids))
    if size < 2:
        raise InputError(f"the text has {len(ids)} tokens; a window needs at least 2")
    count = max(min(settings.tokens, len(ids)) // size, 1)
    return np.asarray(ids[: count * size], np.int64).reshape(count, size)


class _Log:
    """Logits of every window on disk: float32 [n, T, V] are too many to keep."""

    def __init__(self, folder: Path, name: str, shape: tuple[int, int, int]):
        self.array = np.memmap(folder / name, np.float32, "w+", shape=shape)


def measure(
    sources: Sequence[str | Path],
    against: LoadedModel,
    ids: np.ndarray,
    *,
    runtimes: Sequence[str] = (),
    settings: Settings | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """The quality of artefacts and quantized checkpoints.

    Args:
        sources: their folders.
        against: the original.
        ids: int64 [T], the text.
        runtimes: names; by default, for each source, the first installed one made for its format.
        settings: windows and threads.
        report: told what is happening.

    Returns:
        A row for the original in float32, then one per source and runtime.

    Raises:
        ArtefactError: a source of another architecture.
        InputError: a runtime that opens none of the sources, or an encoder.
    """
    settings = settings or Settings()
    spec = against.spec
    if spec.task != "text-generation":
        raise InputError("quality is measured on next tokens; this model has none")
    plans = [(str(source), runtime) for source in sources for runtime in _runtimes(source, runtimes, against)]
    text = windows(ids, settings, spec.context)
    shape = (*text.shape, spec.vocab)
    reference = reference_runtime()
    with tempfile.TemporaryDirectory(prefix="edgeformer-quality-") as scratch:
        report(f"the original in {reference}, {text.size} positions")
        original = _Log(Path(scratch), "original", shape).array
        _run(_open(reference, against, settings), text, original, settings.cached)
        rows = [Row(REFERENCE, reference, "fp32", None, score(original, original, text))]
        bits: dict[str, np.ndarray] = {}
        for source, runtime in plans:
            manifest = bundle.read_manifest(source)
            loaded = load(source)
            if manifest["precision"] != "fp32" and source not in bits:
                report(f"the bits of {source} in {reference}")
                bits[source] = _Log(Path(scratch), f"bits-{len(bits)}", shape).array
                _run(_open(reference, loaded, settings), text, bits[source], settings.cached)
            report(f"{source} in {runtime}")
            found = _Log(Path(scratch), "row", shape).array
            session = _open_source(source, manifest, loaded, runtime, settings)
            _run(session, text, found, settings.cached)
            own = bits.get(source, original)
            rows.append(
                Row(
                    source,
                    runtime,
                    manifest["precision"],
                    bits_per_weight(loaded.require_weights()),
                    score(found, original, text),
                    score(found, own, text),
                    {"quantization": manifest.get("quantization"), "kv": manifest.get("kv"), **session.facts()},
                )
            )
    return rows


def score(rows: np.ndarray, reference: np.ndarray, text: np.ndarray) -> Scores:
    """Compare logits float32 [n, T, V] of windows `text` int64 [n, T] with a reference's."""
    loss, flips, total, worst, positions = 0.0, 0, 0.0, 0.0, 0
    for ours, theirs, ids in zip(rows, reference, text, strict=True):
        q, p = _log_softmax(ours), _log_softmax(theirs)
        loss -= float(q[np.arange(len(ids) - 1), ids[1:]].sum())
        kl = np.maximum((np.exp(p) * (p - q)).sum(-1), 0)
        total, worst = total + float(kl.sum()), max(worst, float(kl.max()))
        flips += int((ours.argmax(-1) != theirs.argmax(-1)).sum())
        positions += len(ids)
    perplexity = float(np.exp(loss / (positions - len(text))))
    return Scores(perplexity, positions, total / positions, worst, 1 - flips / positions, flips)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    y = x.astype(np.float64)
    y -= y.max(-1, keepdims=True)
    y -= np.log(np.exp(y).sum(-1, keepdims=True))
    return y


def _run(session: Session, text: np.ndarray, out: np.ndarray, cached: bool) -> None:
    """Fill `out` [n, T, V] with the logits of every window."""
    whole = session.all_positions and not cached
    for i, ids in enumerate(text):
        session.reset()
        if whole:
            out[i] = session.forward(ids[None], all_positions=True)[0]
            continue
        for t in range(len(ids)):
            out[i, t] = session.forward(ids[None, t : t + 1])[0]


def _open(runtime: str, source: LoadedModel | Path, settings: Settings) -> Session:
    made, variant = require(runtime)
    return made.open(source, Options(threads=settings.threads, capacity=settings.window, variant=variant))


def _open_source(
    source: str, manifest: dict[str, Any], loaded: LoadedModel, runtime: str, settings: Settings
) -> Session:
    return _open(runtime, loaded if manifest.get("format") == "checkpoint" else Path(source), settings)


def _runtimes(source: str | Path, chosen: Sequence[str], against: LoadedModel) -> Iterator[str]:
    """The runtimes of a source."""
    manifest = bundle.read_manifest(source)
    bundle.check_files(source, manifest)
    if manifest["spec_digest"] != digest(against.spec):
        raise ArtefactError(f"{source} is of another architecture ({manifest['name']}) than {against.name}")
    kind = manifest.get("format", "onnx")
    fitting = [name for name in chosen if require(name)[0].takes(kind)]
    if chosen and not fitting:
        raise InputError(f"none of {', '.join(chosen)} opens {FORMATS[kind]} ({source})")
    yield from fitting or [first_that_opens(kind) if kind != "checkpoint" else reference_runtime()]


__all__ = ["Row", "Scores", "Settings", "measure", "score", "windows"]
