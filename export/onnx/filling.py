"""Fill an ONNX graph's initializers with data: streamed into one file, or linked in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeformer.checkpoint.links import fingerprint
from edgeformer.checkpoint.manifest import Linked
from edgeformer.errors import ExportError
from edgeformer.exporters.onnx.graph import BuiltGraph
from edgeformer.exporters.onnx.storage import DataWriter, StoragePlan, link, link_quantized
from edgeformer.weights.binding import Source
from edgeformer.weights.formats import SCALES, GroupTensor, QuantizedTensor

Progress = Callable[[int, int], None]
"""Called with (bytes done, total bytes)."""


def fill(
    built: BuiltGraph, plan: StoragePlan, folder: Path, data_file: str, linking: bool, progress: Progress | None
) -> dict[str, Linked]:
    """Fill every initializer with its data; returns the manifest's entries of linked files.

    Raises:
        ExportError: a file can't be linked as requested, or a tensor can't be converted.
    """
    sources = plan.weights.sources
    done, total = 0, sum(int(sources[n].stored.nbytes * sources[n].share) for n in built.weights)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, total), total)

    initializers = built.model.graph.initializers
    files = sorted(
        {t.file for n in built.weights if linking and _as_it_lies(sources[n]) for t in sources[n].stored.parts()}
    )
    linked = _link_files(files, folder)
    locations = dict(zip(files, linked, strict=True))
    beside = all(entry["hard_link"] for entry in linked.values())
    while data_file in linked:  # the checkpoint is an ONNX artefact itself
        data_file += ".more"
    writer = DataWriter(folder, data_file, advance)
    try:
        for name in built.weights:
            source = sources[name]
            here = locations.get(source.stored.file) if _as_it_lies(source) else None
            if name in built.codes:
                _fill_quantized(initializers, built.codes[name], name, source, folder, here, writer)
            elif here is not None:
                initializers[name].const_value = link(source.stored, name, folder, here)
            elif beside:
                shape, dtype = tuple(initializers[name].shape), plan.storage[name]  # type: ignore[arg-type]
                initializers[name].const_value = writer.source(name, source, dtype, shape)  # type: ignore[arg-type]
            else:
                raise ExportError(
                    f"{source.stored.file} is on another file system than {folder.parent}, and {name} is only a slice of a stored"
                    " tensor, so it can't be linked; use --weights copy, or an output folder beside the checkpoint"
                )
        for name, array in built.constants.items():
            initializers[name].const_value = writer.array(name, array) if beside else ir.tensor(array, name=name)
    finally:
        written = writer.close()
    if not written:
        (folder / data_file).unlink()
    return linked


def _as_it_lies(source: Source) -> bool:
    """Whether the graph can use the stored bytes: no slicing, no reordering, no rounding needed."""
    stored = source.stored
    return source.part is None and (stored.grouped if isinstance(stored, QuantizedTensor) else stored.raw)


def _fill_quantized(
    initializers: Any, forms: list[str], name: str, source: Source, folder: Path, here: str | None, writer: DataWriter
) -> None:
    """Fill in a quantized weight: its codes once, declared under every shape that the graph uses, and its scales."""
    first = initializers[forms[0]]
    dtype, shape = first.dtype, tuple(first.shape)
    if here is not None and isinstance(source.stored, GroupTensor):
        codes, scales = link_quantized(source.stored, name, folder, here, dtype, shape)
    else:
        codes, scales = writer.quantized(name, source, dtype, shape)
    initializers[name + SCALES].const_value = scales
    for form in forms:
        declared = tuple(initializers[form].shape)
        initializers[form].const_value = ir.ExternalTensor(
            codes.location, codes.offset, codes.length, dtype, shape=ir.Shape(declared), name=form, base_dir=folder
        )


def _same_file(a: Path, b: Path) -> bool:
    return b.exists() and a.samefile(b)


def _link_files(files: list[Path], folder: Path) -> dict[str, Linked]:
    """Hard-link a checkpoint's files beside the ONNX file; runtimes refuse paths outside the folder.

    A hard link takes no space, survives the original's replacement, and loads in every tool. Across file systems there are no
    hard links: the manifest then records the paths, all in one folder, which edgeformer's runtime passes to ONNX Runtime.
    """
    linked: dict[str, Linked] = {}
    if len({file.name for file in files}) < len(files):
        raise ExportError(
            "two checkpoint files share a name, so they can't be linked into one folder; use --weights copy"
        )
    for file in files:
        real = file.resolve()
        try:
            if not _same_file(
                real, folder / file.name
            ):  # the other graph of an encoder–decoder model may have linked it
                os.link(real, folder / file.name)
            linked[file.name] = Linked(path=str(real), **fingerprint(real), hard_link=True)
        except OSError:
            linked[real.name] = Linked(path=str(real), **fingerprint(real), hard_link=False)
    outside = {Path(entry["path"]).parent for entry in linked.values() if not entry["hard_link"]}
    inside = any(entry["hard_link"] for entry in linked.values())
    if len(outside) > 1 or (outside and inside):  # a runtime accepts one folder only
        raise ExportError("the checkpoint's shards are in several folders on another file system; use --weights copy")
    return linked
