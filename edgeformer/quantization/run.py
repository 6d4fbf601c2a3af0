"""`quantize`: a checkpoint in, a quantized checkpoint out: `spec.json`, codes and scales by canonical name, a manifest.

Tensors are made one at a time and written to their place at once, so memory holds one of them (a calibrated method also
holds the model), and a run that was stopped goes on where it was.
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
"""Called with (weights done, weights in all)."""


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """What was written."""

    folder: Path
    manifest: Manifest
    notes: list[str]
    bits_per_weight: float


def method_named(name: str) -> Method:
    """The method called so.

    Raises:
        InputError: there is none.
    """
    package = "edgeformer.quantization.methods"
    module = discover.find(package, name)
    if module is None:
        raise InputError(f"there is no quantization method {name!r}; methods are {', '.join(discover.names(package))}")
    return module.Method()


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
        output: folder to write; it appears when complete. While it is being made, `.NAME.quantizing` beside it holds what
            there is, and the same command goes on from there.
        format: q4 or q8, of every tensor.
        method: a file in `edgeformer/quantization/methods`.
        ids: calibration tokens int64 [n, T].
        formats: canonical name -> format, instead of one for all.
        keep: patterns of tensors that stay as they are.
        options: of the method.
        about: what the manifest says besides (the calibration text's name, the budget).
        force: replace a folder that is no artefact.
        progress: called as tensors are finished.
        report: told what is happening.

    Raises:
        InputError: no such format or method, or a calibrated method without text.
        CheckpointError: a weight that can't be held in groups; a checkpoint that is quantized already.
    """
    made, output = method_named(method), Path(output)
    weights, spec = loaded.require_weights(), loaded.spec
    if formats is None:
        if format not in QUANTIZED:
            raise InputError(f"there is no format {format!r}; formats are {', '.join(QUANTIZED)}")
        formats = dict.fromkeys(chosen(spec, keep), QUANTIZED[format])
    if has := stored_format(weights):
        raise CheckpointError(f"{loaded.name} is quantized already ({has}); quantize the original, or lose twice")
    if made.calibrated and ids is None:
        raise InputError(f"the method {method} needs text to calibrate on: --calibration FILE")
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
        notes.insert(0, f"went on with {resumed} tensors that an earlier run had made")
    return QuantizedCheckpoint(output, manifest, notes, bits)


@contextlib.contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """The folder that a run works in and a later one goes on with, for one run at a time. It goes when the run has succeeded,
    or can never succeed."""
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
            f"another run is quantizing to {output} right now; wait for it, or choose another folder"
        ) from None
    try:
        yield folder
    except CheckpointError:
        shutil.rmtree(folder, ignore_errors=True)  # while it is locked: another run may wait for it
        raise
    except OSError as e:
        raise ExportError(f"can't write {output}: {e.strerror or e}. Run the same command again to go on") from e
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
    """Put the finished file into its folder; the manifest, bits per weight, and notes for the user.

    Until the folder is complete, the file stays where it was, too.
    """
    if missing := sorted(partial.entries.keys() - partial.complete()):
        raise CheckpointError(f"{partial.file} lacks {len(missing)} tensors ({missing[0]}, ...); run the command again")
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
            entries[name] = (DTYPES["F32" if name in changed else source.stored.dtype], shape)
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
