"""The manifest of an artefact, as a type: what `edgeformer.json` may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from edgeformer.errors import EdgeformerError
from edgeformer.files.json_file import read_json_file
from edgeformer.files.limits import MAX_SIZE
from edgeformer.files.quoting import shown
from edgeformer.files.typed import mismatch
from edgeformer.spec.task import Task

MANIFEST, SCHEMA = "edgeformer.json", 1


Format = Literal["onnx", "mlx", "gguf", "coreai", "checkpoint"]
Compute = Literal["fp32", "fp16", "bf16", "int8"]


class Fingerprint(TypedDict):
    """What must not change about a linked file."""

    bytes: int
    samples_sha256: str
    mtime_ns: int


class Linked(Fingerprint):
    """A file that the artefact points at."""

    path: str
    hard_link: bool


class Quantization(TypedDict, total=False):
    """How weights were quantized; methods add keys of their own."""

    method: str
    bits_per_weight: float
    stored_bits_per_weight: float
    accuracy_level: int | None
    kept: list[str]


class Variant(TypedDict):
    """Another precision in the same web folder."""

    precision: str
    compute: str
    quantization: Quantization | None
    files: list[str]


class Manifest(TypedDict):
    """The keys of a manifest that edgeformer reads and writes; others are for people. `artefact.described` makes one."""

    schema: int
    name: str
    task: Task
    spec_digest: str
    weights_digest: str
    precision: str
    compute: Compute
    target: str
    context: int
    files: dict[str, int]
    linked: dict[str, Linked]
    format: NotRequired[Format]
    edgeformer: NotRequired[str]
    model_file: NotRequired[str]
    encoder_file: NotRequired[str]
    cache: NotRequired[str | None]
    kv: NotRequired[str]
    cache_windows: NotRequired[dict[str, int]]
    lowering: NotRequired[dict[str, int]]
    one_node: NotRequired[bool]
    quantization: NotRequired[Quantization | None]
    estimate: NotRequired[Any]
    verdict: NotRequired[dict[str, Any] | None]
    spec: NotRequired[dict[str, Any]]
    tokenizer: NotRequired[dict[str, Any] | None]
    others: NotRequired[dict[str, Variant]]


def read(file: Path, error: type[EdgeformerError]) -> Manifest:
    """The content of a manifest.

    Raises:
        error: not a manifest, one written by a newer edgeformer, or a value of the wrong type (the message says where).
    """
    data = read_json_file(file, error)
    if not isinstance(data, dict) or type(data.get("schema")) is not int:
        raise error(f"{file} is not a manifest: it has no schema number")
    if data["schema"] > SCHEMA:
        raise error(
            f"{file.parent} was written by a newer edgeformer (schema {shown(data['schema'])}, this one reads {SCHEMA})"
        )
    if (wrong := mismatch(data, Manifest)) is None and not 0 < data["context"] <= MAX_SIZE:
        wrong = f"context is {shown(data['context'])}"
    if wrong is not None:
        raise error(f"{file} is damaged: {wrong}; export again")
    return cast(Manifest, data)
