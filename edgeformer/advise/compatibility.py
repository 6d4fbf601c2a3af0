"""Which formats and runtimes support a spec, at which precision, and why others don't: from the spec alone, before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeformer import discover
from edgeformer.checkpoint.companions.tokenizer import has_tokenizer
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.checkpoint.manifest import SCHEMA, Manifest
from edgeformer.errors import EdgeformerError
from edgeformer.exporters.coreai.contract import core_ai_notes
from edgeformer.exporters.gguf.exporter import PRECISIONS as GGUF_PRECISIONS
from edgeformer.exporters.gguf.fitting import architecture
from edgeformer.exporters.gguf.tokenizer import tokenizer_metadata
from edgeformer.exporters.hf.config import family_config, known_config
from edgeformer.exporters.mlx.exporter import stock_type
from edgeformer.exporters.onnx.graph import build, target_class
from edgeformer.exporters.onnx.storage import PRECISIONS as ONNX_PRECISIONS
from edgeformer.exporters.onnx.storage import Storage
from edgeformer.inference.lookup import get, names
from edgeformer.inference.runtime import Options
from edgeformer.spec import Model, tensors
from edgeformer.spec.serialization import digest
from edgeformer.spec.task import Task
from edgeformer.weights.formats import QUANTIZED
from edgeformer.weights.precision import FLOAT_TYPES
from edgeformer.weights.rounding import chosen

_HALF = ("q4f16", "q8f16")


@dataclass
class Answer:
    """One way to export or run a model. `precisions`: those supported; `refused`: precision -> reason ("" for all of them);
    `runtimes`: runtime that opens it -> whether it is installed here."""

    name: str
    precisions: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    runtimes: dict[str, bool] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def answers(loaded: LoadedModel) -> list[Answer]:
    """Every export format (ONNX once for each target), and the runtimes that build the spec themselves."""
    spec = loaded.spec
    found = []
    for target, _ in discover.each("edgeformer.exporters.onnx.targets"):
        with discover.sparing("edgeformer.exporters.onnx.targets", target):
            found.append(_onnx(loaded, target))
    found += [_mlx(loaded), _gguf(loaded), _coreai(spec), _hf(spec), _checkpoint(spec)]
    for answer in found:
        kind = answer.name.split()[0]
        answer.runtimes = dict(_runtimes(kind, spec, answer.name.partition(" ")[2])) if answer.precisions else {}
    return found


def _runtimes(kind: str, spec: Model, target: str) -> Iterator[tuple[str, bool]]:
    """The runtimes that open a format; for ONNX, those that open the target's artefacts."""
    promised: Manifest = {
        "schema": SCHEMA,
        "name": "",
        "task": spec.task,
        "spec_digest": digest(spec),
        "weights_digest": "",
        "precision": "fp32",
        "compute": "fp32",
        "target": target,
        "context": spec.context,
        "files": {} if target == "web" else {"genai_config.json": 0},  # which GenAI needs beside the graph
        "linked": {},
    }
    for name in names():
        runtime = get(name)[0]
        if kind == "onnx" and runtime.declines(promised, "") is not None:
            continue
        if runtime.ranked and runtime.takes(kind) and runtime.refuses(spec, Options()) is None:
            yield name, runtime.unavailable() is None


def _tried(answer: Answer, precisions: Iterator[str] | tuple[str, ...], attempt: Callable[[str], list[str]]) -> Answer:
    """Try each precision; a note that several attempts return is kept once."""
    for precision in precisions:
        try:
            for note in attempt(precision):
                if note not in answer.notes:
                    answer.notes.append(note)
            answer.precisions.append(precision)
        except EdgeformerError as e:
            answer.refused[precision] = str(e)
    if len(set(answer.refused.values())) == 1 and not answer.precisions:
        answer.refused = {"": next(iter(answer.refused.values()))}
    return answer


def _onnx(loaded: LoadedModel, target: str) -> Answer:
    spec, kind = loaded.spec, target_class(target)

    def attempt(precision: str) -> list[str]:
        if kind.precisions is not None and precision not in kind.precisions:
            raise EdgeformerError(f"the target {target} supports only {', '.join(kind.precisions)}")
        kind.files(precision)
        said = [] if kind.model_types is None else [_model_type(loaded, kind.model_types)]
        storage, compute = _storage(spec, precision)
        made = build(spec, storage, target=target, compute=compute)
        return [*said, *(f"{precision}: {text} ({count} layers)" for text, count in made.notes.items())]

    precisions = (*ONNX_PRECISIONS, *QUANTIZED, *_HALF)
    return _tried(Answer(f"onnx {target}"), precisions, attempt)


def _model_type(loaded: LoadedModel, known: frozenset[str]) -> str:
    """Under which model type the folder is written."""
    return f"model_type {known_config(loaded.spec, loaded.config, known)['model_type']}"


def _storage(spec: Model, precision: str) -> tuple[dict[str, Storage], Any]:
    """The storage of each tensor, and the compute dtype."""
    if precision in ONNX_PRECISIONS:
        plain, compute = ONNX_PRECISIONS[precision]
        return dict.fromkeys(tensors(spec), plain), compute
    compute = ONNX_PRECISIONS["fp16" if precision.endswith("f16") else "fp32"][1]
    storage: dict[str, Storage] = dict.fromkeys(tensors(spec), compute)
    format = QUANTIZED[precision.removesuffix("f16")]
    return storage | dict.fromkeys(chosen(spec), format), compute


def _mlx(loaded: LoadedModel) -> Answer:
    spec = loaded.spec

    def attempt(precision: str) -> list[str]:
        if spec.task != Task.TEXT_GENERATION:
            raise EdgeformerError("mlx-lm runs decoders only; the runtime mlx runs the checkpoint without an export")
        if precision in QUANTIZED:
            chosen(spec)
        found, reason = stock_type(spec, loaded.model_type)
        if found is not None:
            return [f"mlx-lm's model type {found.name}"]
        return [
            f"the folder brings its own code (trust_remote_code), since no model type of mlx-lm computes this: {reason}"
        ]

    return _tried(Answer("mlx"), (*FLOAT_TYPES, *QUANTIZED, "4bit", "8bit"), attempt)


def _gguf(loaded: LoadedModel) -> Answer:
    spec = loaded.spec

    def attempt(precision: str) -> list[str]:
        fitting = architecture(spec, loaded.model_type)
        if precision in QUANTIZED:
            chosen(spec)
        notes = [f"llama.cpp's architecture {fitting.name}", *fitting.notes]
        if has_tokenizer(loaded.around):
            try:
                notes += tokenizer_metadata(loaded.around, spec.vocab)[1]
            except EdgeformerError as e:
                notes.append(str(e))
        return notes

    return _tried(Answer("gguf"), tuple(p for p in GGUF_PRECISIONS if p != "mixed"), attempt)


def _coreai(spec: Model) -> Answer:
    def attempt(precision: str) -> list[str]:
        if precision.removesuffix("f16") in QUANTIZED:
            chosen(spec)
        return core_ai_notes(spec)

    return _tried(Answer("coreai"), (*ONNX_PRECISIONS, *QUANTIZED, *_HALF), attempt)


def _hf(spec: Model) -> Answer:
    return _tried(Answer("hf"), tuple(FLOAT_TYPES), lambda _: [family_config(spec).note()])


def _checkpoint(spec: Model) -> Answer:
    def attempt(precision: str) -> list[str]:
        if precision in QUANTIZED:
            chosen(spec)
        return []

    return _tried(Answer("checkpoint"), (*FLOAT_TYPES, *QUANTIZED), attempt)
