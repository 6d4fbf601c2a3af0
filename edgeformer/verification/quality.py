"""Quality loss of quantization: the deployed artefact, in its runtime, against the original in float32, on real text.

Two errors are separated. *Quantization error*: the original against the artefact's weights dequantized, both in float32 in the
reference runtime. *Runtime error*: these dequantized weights against the artefact's own runtime (rounded activations, half
precision). Text is teacher-forced, so every position has one correct next token and rows compare position by position.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import LoadedModel, load
from edgeformer.checkpoint.manifest import Format, Quantization
from edgeformer.errors import ArtefactError, InputError
from edgeformer.files.scratch import temporary_folder
from edgeformer.inference.lookup import first_that_opens, require
from edgeformer.inference.runtime import FORMATS, Options, Session
from edgeformer.inference.threads import physical_cores
from edgeformer.spec.serialization import digest
from edgeformer.spec.task import Task
from edgeformer.verification.reference import reference_runtime
from edgeformer.weights.rounding import bits_per_weight, stored_format, stored_precision

REFERENCE = "original"


@dataclass
class Scores:
    """Scores over every position of every window.

    perplexity: exp of the mean negative log-likelihood of the text's next tokens. kl_*: KL(original ‖ row) in nats. top1:
    share of positions whose top-1 token is the original's; flips: number of positions where it isn't.
    """

    perplexity: float
    positions: int
    kl_mean: float = 0.0
    kl_max: float = 0.0
    top1: float = 1.0
    flips: int = 0


@dataclass
class Row:
    """Scores of a source in a runtime: `against` the original; `runtime_error` against its own weights in float32, or None."""

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
    """How the text is evaluated.

    window: tokens per window, each with a fresh context; tokens: total number; cached: feed one token at a time through the KV
    cache, as in generation, instead of whole windows.
    """

    window: int = 256
    tokens: int = 8192
    threads: int = field(default_factory=physical_cores)
    cached: bool = False


def windows(ids: np.ndarray, settings: Settings, context: int) -> np.ndarray:
    """Split a text's ids into windows, int64 [n, window].

    Raises:
        InputError: the text is shorter than two tokens.
    """
    size = min(settings.window, context, len(ids))
    if size < 2:
        raise InputError(f"the text has {len(ids)} tokens; a window needs at least 2")
    count = max(min(settings.tokens, len(ids)) // size, 1)
    return np.asarray(ids[: count * size], np.int64).reshape(count, size)


class _Logs:
    """Logits of every window on disk, since float32 [n, T, V] may not fit into memory. Free space is checked before computing:
    a disk that fills up under a memory map kills the process without an error."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], count: int):
        needed, free = 4 * math.prod(shape) * count, shutil.disk_usage(folder).free
        if needed > 0.95 * free:
            raise InputError(
                f"logits of {shape[0] * shape[1]} positions and {shape[2]} tokens need {needed / 1e9:.1f} GB in"
                f" {folder.parent}, where {free / 1e9:.1f} GB are free; use fewer --tokens, or point TMPDIR elsewhere"
            )
        self.folder, self.shape = folder, shape

    def array(self, name: str) -> np.ndarray:
        """Memory-map an array; the same name overwrites the same file."""
        return np.memmap(self.folder / name, np.float32, "w+", shape=self.shape)


def measure(
    sources: Sequence[str | Path],
    against: LoadedModel,
    ids: np.ndarray,
    *,
    runtimes: Sequence[str] = (),
    settings: Settings | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Measure the quality of artefacts and quantized checkpoints.

    Args:
        sources: their folders.
        against: the original.
        ids: int64 [T], the text.
        runtimes: names; default: for each source, the first installed one native to its format.
        settings: windows and threads.
        report: called with progress messages.

    Returns:
        A row for the original in float32, then one per source and runtime.

    Raises:
        ArtefactError: a source has another architecture, or its logits aren't finite.
        InputError: no chosen runtime opens a source, or the model is no decoder.
    """
    settings = settings or Settings()
    spec = against.spec
    if spec.task != Task.TEXT_GENERATION:
        raise InputError("quality is measured on next-token predictions, which only decoders make")
    plans = {str(source): list(_runtimes(source, runtimes, against)) for source in sources}
    subjects = {source: _subject(source) for source in plans}
    text = windows(ids, settings, min([spec.context, *(subject.context for subject in subjects.values())]))
    reference = reference_runtime()
    settings = replace(settings, window=text.shape[1])
    with temporary_folder() as scratch:
        logs = _Logs(scratch, (*text.shape, spec.vocab), 2)
        original, bits = logs.array("original"), logs.array("bits")
        report(f"the original in {reference}, {text.size} positions")
        _fill(_open(reference, against, settings), text, original, settings.cached)
        rows = [Row(REFERENCE, reference, "fp32", None, _Sums().over(original, original, text))]
        for source, names in plans.items():
            subject, loaded = subjects[source], load(source)
            own = original
            if subject.precision != "fp32":
                report(f"the bits of {source} in {reference}")
                _fill(_open(reference, loaded, settings), text, own := bits, settings.cached)
            for runtime in names:
                report(f"{source} in {runtime}")
                session = _open(runtime, loaded if subject.format == "checkpoint" else Path(source), settings)
                costs, runtime_error = _Sums(), _Sums()
                for i, logits in enumerate(_answers(session, text, settings.cached)):
                    if not np.isfinite(logits).all():
                        raise ArtefactError(f"{source} in {runtime} returns non-finite logits (window {i})")
                    costs.add(logits, original[i], text[i])
                    runtime_error.add(logits, own[i], text[i])
                facts = {"quantization": subject.quantization, "kv": subject.kv, **session.facts()}
                bits_each = bits_per_weight(loaded.require_weights())
                found = costs.scores(), runtime_error.scores()
                rows.append(Row(source, runtime, subject.precision, bits_each, *found, facts))
    return rows


class _Sums:
    """Accumulates the sums behind `Scores`, window by window, in blocks of positions."""

    def __init__(self) -> None:
        self.loss = self.total = self.worst = 0.0
        self.flips = self.positions = self.predicted = 0

    def add(self, ours: np.ndarray, theirs: np.ndarray, ids: np.ndarray) -> None:
        """Add a window: logits float32 [T, V] of a row and of its reference, ids int64 [T]."""
        for start in range(0, len(ids), _BLOCK):
            end = min(start + _BLOCK, len(ids))
            q, p = _log_softmax(ours[start:end]), _log_softmax(theirs[start:end])
            following = ids[start + 1 : end + 1]
            self.loss -= float(q[np.arange(len(following)), following].sum())
            self.predicted += len(following)
            kl = np.maximum((np.exp(p) * (p - q)).sum(-1), 0)
            self.total, self.worst = self.total + float(kl.sum()), max(self.worst, float(kl.max()))
            self.flips += int((q.argmax(-1) != p.argmax(-1)).sum())
            self.positions += end - start

    def over(self, rows: np.ndarray, reference: np.ndarray, text: np.ndarray) -> Scores:
        """The scores of logits [n, T, V] of windows [n, T]."""
        for ours, theirs, ids in zip(rows, reference, text, strict=True):
            self.add(ours, theirs, ids)
        return self.scores()

    def scores(self) -> Scores:
        """Scores of everything added."""
        share = self.flips / self.positions
        perplexity = float(np.exp(self.loss / self.predicted))
        return Scores(perplexity, self.positions, self.total / self.positions, self.worst, 1 - share, self.flips)


_BLOCK = 128


def score(rows: np.ndarray, reference: np.ndarray, text: np.ndarray) -> Scores:
    """Compare logits float32 [n, T, V] of windows `text` int64 [n, T] with a reference's."""
    return _Sums().over(rows, reference, text)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    y = x.astype(np.float64)
    y -= y.max(-1, keepdims=True)
    y -= np.log(np.exp(y).sum(-1, keepdims=True))
    return y


def _answers(session: Session, text: np.ndarray, cached: bool) -> Iterator[np.ndarray]:
    """Yield the logits [T, V] of each window."""
    for ids in text:
        session.reset()
        if session.all_positions and not cached:
            yield session.forward(ids[None], all_positions=True)[0]
        else:
            yield np.stack([session.forward(ids[None, t : t + 1])[0] for t in range(len(ids))])


def _fill(session: Session, text: np.ndarray, out: np.ndarray, cached: bool) -> None:
    for i, logits in enumerate(_answers(session, text, cached)):
        out[i] = logits


def _open(runtime: str, source: LoadedModel | Path, settings: Settings) -> Session:
    made, variant = require(runtime)
    return made.open(source, Options(threads=settings.threads, capacity=settings.window, variant=variant))


@dataclass(frozen=True)
class _Subject:
    """A source to score: an artefact, or a MODEL in the precision its weights are stored in."""

    format: Format
    name: str
    spec_digest: str
    precision: str
    context: int
    quantization: Quantization | None = None
    kv: str | None = None


def _subject(source: str | Path) -> _Subject:
    if (Path(source) / bundle.MANIFEST).exists():
        manifest = bundle.read_manifest(source)
        bundle.check_files(source, manifest)
        told = (manifest["name"], manifest["spec_digest"], manifest["precision"], manifest["context"])
        return _Subject(manifest.get("format", "onnx"), *told, manifest.get("quantization"), manifest.get("kv"))
    loaded = load(source)
    stored = stored_format(loaded.require_weights()) or stored_precision(loaded.require_weights())
    return _Subject("checkpoint", loaded.name, digest(loaded.spec), stored, loaded.spec.context)


def _runtimes(source: str | Path, chosen: Sequence[str], against: LoadedModel) -> Iterator[str]:
    """Yield the runtimes to run a source in."""
    subject = _subject(source)
    if subject.spec_digest != digest(against.spec):
        raise ArtefactError(f"{source} has another architecture ({subject.name}) than {against.name}")
    kind = subject.format
    fitting = [name for name in chosen if require(name)[0].takes(kind)]
    if chosen and not fitting:
        raise InputError(f"none of {', '.join(chosen)} opens {FORMATS[kind]} ({source})")
    yield from fitting or [first_that_opens(kind) if kind != "checkpoint" else reference_runtime()]


__all__ = ["Row", "Scores", "Settings", "measure", "score", "windows"]
