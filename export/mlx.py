"""`export --to mlx`: a folder that mlx-lm loads.

Where the spec maps onto a model type that mlx-lm has, the folder has that type and its names, and every tool of the MLX world
reads it. Any other spec becomes a folder with a `model_file` that builds the model from the spec with edgeformer; mlx-lm runs
it only with `trust_remote_code`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import edgeformer
from edgeformer import bundle, discover
from edgeformer.affine import GROUP_SIZES, AffineTensor
from edgeformer.checkpoint import TOKENIZER_FILES, LoadedModel, as_numpy, family, special_ids
from edgeformer.errors import ExportError, RuntimeUnavailable
from edgeformer.export.mlx_types._common import Unmapped
from edgeformer.export.onnx import Exported, Progress, source_files
from edgeformer.export.safetensors import Group, write_shards
from edgeformer.layers.rope import length_dependent
from edgeformer.safetensors_file import DTYPES
from edgeformer.spec import Linear, Model, Stacked, Table, digest, leaves, tensors, to_json
from edgeformer.weights import Source, stored_part

PRECISIONS = ("fp32", "fp16", "bf16", "4bit", "8bit")
_PLAIN = {"fp32": DTYPES["F32"], "fp16": DTYPES["F16"], "bf16": DTYPES["BF16"]}
CODE_TARGET, CODE_NAME = "edgeformer", "edgeformer_model.py"
MODEL_FILE = '''"""The model of this folder for mlx-lm (trust_remote_code): edgeformer builds it from the spec in config.json."""

from edgeformer.backends.mlx.lm import Model, ModelArgs

__all__ = ["Model", "ModelArgs"]
'''


@dataclass(frozen=True)
class _Quantization:
    bits: int
    group_size: int
    dtype: np.dtype


def export_mlx(
    loaded: LoadedModel,
    output: str | os.PathLike,
    *,
    precision: str | None = None,
    group_size: int | None = None,
    dtype: str | None = None,
    stock: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write an mlx-lm folder.

    Args:
        loaded: the model, from `edgeformer.load`.
        output: folder to write; it appears when complete.
        precision: fp32, fp16 or bf16; 4bit or 8bit: linear maps and embeddings affine-quantized as mlx-lm quantizes them. By
            default what the checkpoint is stored in.
        group_size: weights per scale: 32, 64 or 128; by default 64, or what the checkpoint is stored in.
        dtype: fp32, fp16 or bf16, with 4bit and 8bit: scales, what isn't quantized, and so mlx-lm's arithmetic. By default what
            the checkpoint is stored in.
        stock: refuse a spec that no model type of mlx-lm can hold, instead of writing a `model_file` for it.
        force: replace a folder that is no artefact.
        progress: called with (bytes done, bytes in all).

    Raises:
        ExportError: it can't be written as asked; nothing is left behind.
        RuntimeUnavailable: quantizing needs MLX.
    """
    spec, weights = loaded.spec, loaded.require_weights()
    if spec.task != "text-generation":
        raise ExportError(
            f"mlx-lm runs decoders only, this is a {spec.kind}; the runtime mlx runs its checkpoint as it is"
        )
    precision, group_size = _defaults(weights.sources, precision, group_size)
    if precision not in _PLAIN and dtype is None:
        dtype = _stored_precision(weights.sources)
    quantization = _quantization(precision, group_size, dtype)
    config, reason = stock_config(spec)
    if config is None and stock:
        raise ExportError(f"no model type of mlx-lm can hold this architecture: {reason}")
    names = _stored_names(spec, config)
    notes = list(loaded.notes)
    if config is None:
        config = {"model_type": CODE_TARGET, "model_file": CODE_NAME, "edgeformer_spec": to_json(spec)}
        notes.append(
            f"no model type of mlx-lm can hold this architecture ({reason}), so the folder brings its own code: load it with"
            " trust_remote_code=True (--trust-remote-code), where edgeformer[mlx] is installed"
        )
    groups, quantized, left = _groups(spec, weights.sources, names, precision, quantization)
    if length_dependent(spec):
        notes.append(
            "rotation depends on the sequence's length, and mlx-lm takes a prompt in pieces: beyond the original context its"
            " logits differ from one pass (the runtime mlx takes such prompts whole)"
        )
    if left:
        share = sum(g.nbytes() for g in groups if left & g.tensors.keys()) / sum(g.nbytes() for g in groups)
        notes.append(
            f"not quantized: {len(left)} maps, {share:.0%} of the bytes ({min(left)}, ...): their inputs are no multiple of"
            f" {group_size}, or they are stacked maps (experts), which this export leaves as they are"
        )
    if quantization is not None and quantization.bits == 8 and quantization.dtype == _PLAIN["bf16"]:
        notes.append(
            "bf16 scales have eight bits, as the codes: weights are off by up to 1.5 steps; --dtype fp16 avoids that"
        )
    if quantized:
        assert quantization is not None
        entry = {"group_size": quantization.group_size, "bits": quantization.bits, "mode": "affine"}
        config |= {"quantization": entry, "quantization_config": entry}
    with bundle.writing(Path(output), force=force, keep=source_files(loaded)) as folder:
        write_shards(folder, groups, {"format": "mlx"}, progress)
        _companions(loaded, folder, config)
        manifest = {
            "edgeformer": edgeformer.__version__,
            "format": "mlx",
            "name": Path(loaded.name).resolve().name,
            "task": spec.task,
            "spec": to_json(spec),
            "spec_digest": digest(spec),
            "weights_digest": loaded.weights_digest(),
            "precision": precision if quantization is None else f"{precision}-g{quantization.group_size}",
            "compute": precision if quantization is None else dtype,
            "target": config["model_type"],
            "context": spec.context,
            "files": {f.name: f.stat().st_size for f in sorted(folder.iterdir())},
            "linked": {},
            "verdict": None,
        }
        bundle.write_manifest(folder, manifest)
    return Exported(Path(output), manifest, notes)


def stock_config(spec: Model) -> tuple[dict[str, Any] | None, str]:
    """The config of the first model type of mlx-lm that holds the spec; or None, and why each of them doesn't."""
    reasons = []
    for name in discover.names("edgeformer.export.mlx_types"):
        module = discover.find("edgeformer.export.mlx_types", name)
        assert module is not None
        try:
            return module.config(spec), ""
        except Unmapped as e:
            reasons.append(f"{name}: {e}")
    return None, "; ".join(reasons)


def _defaults(sources: dict[str, Source], precision: str | None, group_size: int | None) -> tuple[str, int]:
    """Precision and group size, where not given those of the checkpoint."""
    affine = [s.stored for s in sources.values() if isinstance(s.stored, AffineTensor)]
    if precision is None:
        precision = f"{affine[0].bits}bit" if affine else _stored_precision(sources)
    if group_size is None:
        group_size = affine[0].group_size if affine and precision == f"{affine[0].bits}bit" else 64
    return precision, group_size


def _stored_precision(sources: dict[str, Source]) -> str:
    """The widest type that is stored."""
    types = {source.stored.dtype for source in sources.values()}
    return next(
        (precision for precision, t in (("fp32", "F32"), ("bf16", "BF16"), ("fp16", "F16")) if t in types), "fp32"
    )


def _quantization(precision: str, group_size: int, dtype: str | None) -> _Quantization | None:
    if precision not in PRECISIONS:
        raise ExportError(f"precision {precision!r} is not known for MLX; it is one of {', '.join(PRECISIONS)}")
    if precision in _PLAIN:
        if dtype is not None:
            raise ExportError(f"--dtype is for 4bit and 8bit; --precision {precision} already says it")
        return None
    if dtype not in _PLAIN:
        raise ExportError(f"dtype {dtype!r} is not known; it is one of {', '.join(_PLAIN)}")
    if group_size not in GROUP_SIZES:
        raise ExportError(f"group size {group_size} is not MLX's; it is one of {', '.join(map(str, GROUP_SIZES))}")
    try:
        version("mlx")
    except PackageNotFoundError:
        raise RuntimeUnavailable('quantizing for MLX needs the package mlx; pip install "edgeformer[mlx]"') from None
    return _Quantization(int(precision.removesuffix("bit")), group_size, _PLAIN[dtype])


def _stored_names(spec: Model, config: dict[str, Any] | None) -> dict[str, list[str]]:
    """Stored name -> the canonical tensors that it holds, one after the other along axis 0."""
    if config is None:
        return {name: [name] for name in tensors(spec)}
    module = family(config["model_type"])
    names = getattr(module, "MLX_NAMES", module.NAMES)
    parts: dict[str, list[tuple[int, str]]] = {}
    for name in tensors(spec):
        part = stored_part(names, name)
        full = part.name if part.name.startswith("lm_head.") else f"model.{part.name}"
        parts.setdefault(full, []).append((part.index, name))
    return {full: [name for _, name in sorted(found)] for full, found in parts.items()}


def _groups(
    spec: Model,
    sources: dict[str, Source],
    names: dict[str, list[str]],
    precision: str,
    quantization: _Quantization | None,
) -> tuple[list[Group], list[str], set[str]]:
    """What to write; the paths that are quantized; and the maps that should have been, but can't."""
    maps = {f"{path}.weight": leaf for path, leaf in leaves(spec) if isinstance(leaf, (Linear, Table, Stacked))}
    groups, quantized, left = [], [], set()
    for stored, members in names.items():
        own = [sources[m] for m in members]
        shapes = [s.shape for s in own]
        shape = (sum(s[0] for s in shapes), *shapes[0][1:])
        wanted = quantization is not None and members[0] in maps
        stacked = wanted and isinstance(maps[members[0]], Stacked)
        if wanted and not stacked and quantization is not None and shape[-1] % quantization.group_size == 0:
            path = stored.removesuffix(".weight")
            groups.append(_quantized(path, own, shape, quantization))
            quantized.append(path)
            continue
        if wanted:
            left.add(stored)
        dtype = _PLAIN[precision] if quantization is None else quantization.dtype
        groups.append(Group({stored: (dtype, shape)}, lambda own=own, dtype=dtype: [_joined(own, dtype)]))
    return groups, quantized, left


def _joined(sources: list[Source], dtype: np.dtype) -> np.ndarray:
    x = np.concatenate([s.read() for s in sources]) if len(sources) > 1 else sources[0].read()
    if dtype == np.float16 and max(-float(x.min(initial=0)), float(x.max(initial=0))) > 65504:
        raise ExportError("a weight is larger than fp16 can hold (65504); export with --precision fp32 or bf16")
    return x.astype(dtype, copy=False)


def _quantized(path: str, sources: list[Source], shape: tuple[int, ...], q: _Quantization) -> Group:
    """A weight as codes, scales and biases: those it is stored with if they are what is asked for, else MLX's own."""
    stored = sources[0].stored
    kept = len(sources) == 1 and sources[0].part is None and isinstance(stored, AffineTensor)
    kept = kept and (stored.bits, stored.group_size) == (q.bits, q.group_size)  # type: ignore[union-attr]
    coded = (np.dtype(np.uint32), (*shape[:-1], shape[-1] * q.bits // 32))
    grouped = (q.dtype, (*shape[:-1], shape[-1] // q.group_size))

    def make() -> list[np.ndarray]:
        if kept:
            assert isinstance(stored, AffineTensor)
            return [stored.codes(), stored.scales.read().astype(q.dtype), stored.biases.read().astype(q.dtype)]
        import mlx.core as mx

        x = mx.array(_joined(sources, q.dtype))
        found = mx.quantize(x, group_size=q.group_size, bits=q.bits)
        return [as_numpy(found[0]), *map(as_numpy, found[1:])]

    return Group({f"{path}.weight": coded, f"{path}.scales": grouped, f"{path}.biases": grouped}, make)


def _companions(loaded: LoadedModel, folder: Path, config: dict[str, Any]) -> None:
    """The config with the ids of special tokens, the tokenizer unchanged, and the model's code where it brings its own."""
    ids = special_ids(loaded.folder, loaded.config)
    config |= {f"{k}_token_id": v for k, v in ids.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if "model_file" in config:
        (folder / config["model_file"]).write_text(MODEL_FILE)
        (folder / "spec.json").write_text(json.dumps(to_json(loaded.spec), indent=1) + "\n")
    if loaded.folder is not None:
        for name in TOKENIZER_FILES:
            if (file := loaded.folder / name).exists():
                shutil.copyfile(file, folder / name)


__all__ = ["PRECISIONS", "export_mlx", "stock_config"]
