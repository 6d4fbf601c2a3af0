"""`quantize`: turn a checkpoint into a quantized one: `spec.json`, codes and scales by canonical name, a manifest.

Tensors are quantized one at a time and written immediately, so memory holds one of them (calibrated methods also hold the
model), and an interrupted run resumes where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

import edgeformer
from edgeformer import discover
from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.artefact import described, source_files, write_surroundings, writing_from
from edgeformer.checkpoint.loading import LoadedModel, load
from edgeformer.checkpoint.manifest import Manifest, Quantization
from edgeformer.errors import CheckpointError, ExportError, InputError
from edgeformer.files.locks import Held, Lock
from edgeformer.quantization.calibration import require_torch
from edgeformer.quantization.job import Job, Method, Quantized
from edgeformer.quantization.partial import WEIGHTS, PartialFile
from edgeformer.spec.serialization import digest, to_json
from edgeformer.weights.formats import QUANTIZED, SCALES, Format, widest
from edgeformer.weights.rounding import bits_per_weight, chosen, quantizable, stored_format
from edgeformer.weights.safetensors_file import DTYPES

Progress = Callable[[int, int], None]
"""Called with (weights done, total weights)."""


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """The result of `quantize`: what was written, and notes for the user."""

    folder: Path
    manifest: Manifest
    notes: list[str]
    bits_per_weight: float


def method_named(name: str) -> Method:
    """The quantization method with this name.

    Raises:
        InputError: there is no such method.
    """
    package = "edgeformer.quantization.methods"
    module = discover.find(package, name)
    if module is None:
        raise InputError(f"unknown quantization method {name!r}; methods are {', '.join(discover.names(package))}")
    return discover.declared(module, "Method", type)()


def quantize(
    loaded: LoadedModel,
    output: str | os.PathLike,
    *,
    format: str = "q4",
    method: str = "search",
    ids: np.ndarray | None = None,
    formats: dict[str, Format] | None = None,
    keep: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    about: dict[str, Any] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> QuantizedCheckpoint:
    """Quantize a model.

    Args:
        loaded: the model, from `edgeformer.load`.
        output: folder to write; it appears only when complete. Until then, `.NAME.quantizing` beside it holds the finished
            tensors, and running the same command again resumes from there.
        format: q4 or q8, for all tensors.
        method: a file in `edgeformer/quantization/methods`.
        ids: calibration tokens int64 [n, T].
        formats: canonical name -> format, instead of one format for all.
        keep: name patterns of tensors to leave unquantized.
        options: the method's options.
        about: additional entries of the manifest's `quantization` (the calibration text's name, the budget).
        force: replace an existing folder even if it is not an artefact.
        progress: called as tensors are finished.
        report: called with a text per stage.

    Raises:
        InputError: no such format or method, or a calibrated method without text.
        CheckpointError: a weight can't be quantized in groups, or the checkpoint is already quantized.
    """
    made, output = method_named(method), Path(output)
    weights, spec = loaded.require_weights(), loaded.spec
    if formats is None:
        if format not in QUANTIZED:
            raise InputError(f"unknown format {format!r}; formats are {', '.join(QUANTIZED)}")
        formats = dict.fromkeys(chosen(spec, keep), QUANTIZED[format])
    if has := stored_format(weights):
        raise CheckpointError(
            f"{loaded.name} is already quantized ({has}); quantize the original, or weights are rounded twice"
        )
    if made.calibrated and ids is None:
        raise InputError(f"the method {method} needs calibration text: --calibration FILE")
    if made.calibrated:
        require_torch()
    bundle.check_place(output, force, source_files(loaded))
    settings = {
        "version": edgeformer.__version__,
        "spec": digest(spec),
        "weights": weights.content_digest(),
        "formats": {name: f.name for name, f in formats.items()},
        "method": method,
        "options": options or {},
        "ids": None if ids is None else hashlib.sha256(ids.tobytes()).hexdigest(),
    }
    identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    entries = _entries(loaded, formats, made.changed(loaded))
    with _scratch(output) as scratch:
        partial = PartialFile(scratch, entries, identity)
        resumed = len(partial.done & weights.keys())
        _fill(Job(loaded, formats, ids, partial, options or {}, report), made, progress)
        manifest, bits, notes = _assemble(loaded, partial, output, force, method, formats, about or {})
    if resumed:
        notes.insert(0, f"resumed with {resumed} tensors from an earlier run")
    return QuantizedCheckpoint(output, manifest, notes, bits)


@contextlib.contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """The work folder of a run, which a later run can resume; locked, so that only one run uses it at a time. It is deleted when
    the run succeeds, or fails in a way that a later run can't fix."""
    folder = output.absolute().with_name(f".{output.name}.quantizing")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ExportError(f"can't write {folder}: {e.strerror}") from e
    try:
        lock = Lock(folder / "lock", timeout=0)
    except OSError as e:
        raise ExportError(f"can't write {folder}: {e.strerror}") from e
    except Held:
        raise InputError(
            f"another process is quantizing to {output}; wait for it to finish, or choose another folder"
        ) from None
    try:
        yield folder
    except CheckpointError:
        shutil.rmtree(folder, ignore_errors=True)  # while still locked: another run may be waiting
        raise
    except OSError as e:
        raise ExportError(f"can't write {output}: {e.strerror or e}. Run the same command again to resume") from e
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def _assemble(
    loaded: LoadedModel,
    partial: PartialFile,
    output: Path,
    force: bool,
    method: str,
    formats: dict[str, Format],
    about: dict[str, Any],
) -> tuple[Manifest, float, list[str]]:
    """Put the finished file into the output folder; returns the manifest, bits per weight, and notes for the user.

    The file also stays in the work folder until the output folder is complete.
    """
    if missing := sorted(partial.entries.keys() - partial.complete()):
        raise CheckpointError(
            f"{partial.file}: {len(missing)} tensors are missing ({missing[0]}, ...); run the same command again"
        )
    spec = loaded.spec
    with writing_from(loaded, output, force=force) as folder:
        try:
            os.link(partial.file, folder / WEIGHTS)
        except OSError:
            shutil.copyfile(partial.file, folder / WEIGHTS)
        notes = _companions(loaded, folder)
        quantized = load(folder).require_weights()
        left = sorted(set(quantizable(spec)) - set(formats))
        precision = widest(formats.values())
        manifest = described(loaded, folder, format="checkpoint", precision=precision, compute="fp32", target="any")
        bits = bits_per_weight(quantized)
        manifest["quantization"] = cast(
            Quantization, {"method": method, **about, "bits_per_weight": bits, "kept": left}
        )
        bundle.write_manifest(folder, manifest)
    return manifest, bits, notes


def _entries(loaded: LoadedModel, formats: dict[str, Format], changed: set[str]) -> dict[str, Any]:
    """Stored name -> (dtype, shape)."""
    entries: dict[str, Any] = {}
    for name, source in loaded.require_weights().sources.items():
        shape = source.shape
        if (format := formats.get(name)) is not None:
            entries[name] = (np.dtype(np.uint8), format.packed_shape(shape))
            entries[name + SCALES] = (np.dtype(np.float16), format.scales_shape(shape))
        else:
            entries[name] = (
                DTYPES["F32"] if name in changed else DTYPES.get(source.stored.dtype, DTYPES["F32"]),
                shape,
            )
    return entries


def _fill(job: Job, method: Method, progress: Progress | None) -> None:
    weights, partial = job.loaded.require_weights(), job.partial
    sizes = {name: math.prod(source.shape) for name, source in weights.sources.items()}
    done, total = sum(sizes.get(name, 0) for name in partial.done), sum(sizes.values())

    def write(made: Mapping[str, Quantized | np.ndarray]) -> None:
        nonlocal done
        tensors: dict[str, np.ndarray] = {}
        for name, value in made.items():
            if isinstance(value, tuple):
                tensors |= {name: value[0], name + SCALES: value[1]}
            else:
                tensors[name] = value.astype(partial.entries[name][0], copy=False)
        partial.write(tensors)
        done += sum(sizes[name] for name in made)
        if progress is not None:
            progress(done, total)

    for made in method.run(job):
        write(made)
    for name in weights:
        if name not in partial.done:
            write({name: np.asarray(weights[name])})


def _companions(loaded: LoadedModel, folder: Path) -> list[str]:
    (folder / "spec.json").write_text(json.dumps(to_json(loaded.spec), indent=1) + "\n")
    if loaded.config is not None:
        (folder / "config.json").write_text(json.dumps(loaded.config, indent=2) + "\n")
    return write_surroundings(loaded, folder)
