"""`export --to coreai`: a bundle for Apple's Core AI (macOS and iOS 27): an `.aimodel`, the tokenizer, and `metadata.json`.

The asset is built from the spec directly, without torch, and can be verified on Linux: the runtime `coreai` computes it there
with the reference interpreter of the coreai-core package.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.artefact import Exported, described, headless, write_surroundings, writing_from
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.exporters.coreai import package
from edgeformer.exporters.coreai.contract import METADATA, TOKENIZER, check_bundle, metadata, remarks
from edgeformer.exporters.onnx.filling import Progress
from edgeformer.exporters.onnx.storage import plan
from edgeformer.spec import tensors
from edgeformer.spec.serialization import to_json
from edgeformer.spec.task import Task
from edgeformer.weights.rounding import bits_per_weight, group_format


def export_coreai(
    loaded: LoadedModel,
    output: str | os.PathLike,
    *,
    precision: str | None = None,
    keep: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a Core AI bundle.

    Args:
        loaded: the model, from `edgeformer.load`.
        output: folder to write; it appears only when complete.
        precision: fp32 or fp16; bf16, which is stored so and computed in fp32; q4, q8 or mixed, with the suffix f16 for fp16
            arithmetic. Defaults to the checkpoint's own codes if it has some, else to fp16, which Apple's runner asks for.
        keep: name patterns of tensors that q4 and q8 leave unquantized.
        force: replace an existing folder even if it is not an artefact.
        progress: called with (bytes done, total bytes).

    Raises:
        ExportError: the model can't be written as requested; nothing is left behind.
        RuntimeUnavailable: coreai-core isn't installed, or is of another version than edgeformer knows.
    """
    from edgeformer.exporters.coreai.program import write

    package.require()
    spec = loaded.spec
    made = plan(spec, loaded.require_weights(), precision or _usual(loaded), False, keep)
    half = made.compute == ir.DataType.FLOAT16
    name = re.sub(r"[^A-Za-z0-9._-]", "-", Path(loaded.name).resolve().name) or "model"
    decodes = spec.task == Task.TEXT_GENERATION
    with writing_from(loaded, Path(output), force=force) as folder:
        size = write(spec, made, folder / f"{name}.aimodel", progress)
        place = folder / TOKENIZER if decodes else folder
        place.mkdir(exist_ok=True)
        (folder / "spec.json").write_text(json.dumps(to_json(spec), indent=1) + "\n")
        if loaded.config is not None:
            (folder / "config.json").write_text(json.dumps(headless(spec, loaded.config), indent=2) + "\n")
        notes = write_surroundings(loaded, place)
        if decodes:
            described_as = metadata(loaded.spec, name, made.precision, tokenizer=(place / "tokenizer.json").is_file())
            (folder / METADATA).write_text(json.dumps(described_as, indent=1) + "\n")
        manifest = described(
            loaded, folder, format="coreai", precision=made.precision, compute="fp16" if half else "fp32", target="coreai",
        )  # fmt: skip
        manifest["model_file"] = f"{name}.aimodel"
        if bundle.has_own_bits(made.precision):
            made_by = loaded.quantization or {"method": "rtn"}
            manifest["quantization"] = {
                **made_by,
                "bits_per_weight": bits_per_weight(made.weights),
                "stored_bits_per_weight": round(8 * size / sum(map(math.prod, tensors(spec).values())), 3),
            }
        if decodes:
            check_bundle(folder)
        bundle.write_manifest(folder, manifest)
    if decodes:
        notes += remarks(loaded, half=half)
    if not half and bundle.has_own_bits(made.precision):
        notes.append(
            "in float32 arithmetic Core AI needs float32 scales, which take 2 bytes more per 32 weights; q4f16 and q8f16 keep the"
            " fp16 ones"
        )
    return Exported(Path(output), manifest, [*loaded.notes, *notes])


def _usual(loaded: LoadedModel) -> str:
    """The checkpoint's own codes, with the fp16 arithmetic that Apple's runner asks for; else fp16."""
    has = group_format(loaded.require_weights())
    return f"{has}f16" if has else "fp16"


EXPORTER = export_coreai
