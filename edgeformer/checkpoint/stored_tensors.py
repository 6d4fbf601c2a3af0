"""The tensors in a folder, whatever wrote them: safetensors, MLX's affine codes, `q4` and `q8` groups, ONNX, Core AI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeformer.checkpoint.links import check_linked
from edgeformer.checkpoint.manifest import MANIFEST, Manifest, read
from edgeformer.errors import CheckpointError
from edgeformer.files.paths import inside
from edgeformer.models._config import read_json
from edgeformer.weights import affine, foreign, formats
from edgeformer.weights.foreign import Joined
from edgeformer.weights.mlir_file import read_asset
from edgeformer.weights.onnx_file import read_initializers
from edgeformer.weights.safetensors_file import StoredTensor, checkpoint_files, read_checkpoint, read_metadata


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights in a known format, including formats that are refused."""
    patterns = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth")
    return holds_onnx(folder) or coreai_asset(folder) is not None or any(next(folder.glob(p), None) for p in patterns)


def stored_tensors(folder: Path, quantization: object = None) -> dict[str, StoredTensor]:
    """A folder's tensors by stored name, with codes and scales of quantized ones joined.

    quantization: the `quantization` of an MLX folder's config.
    """
    if (manifest := manifest_of(folder)) is not None and holds_onnx(folder):
        linked = check_linked(folder, manifest["linked"])
        found = read_initializers(onnx_file(folder), linked=linked)
        if (encoder := manifest.get("encoder_file")) is not None:  # the second of two programs
            file = inside(folder, encoder, str(folder / MANIFEST), CheckpointError)
            found = read_initializers(file, linked=linked) | found
        return found
    if (asset := coreai_asset(folder)) is not None:
        return read_asset(asset)
    stored = read_checkpoint(folder)
    return formats.join(stored, str(folder)) if quantization is None else affine.join(stored, quantization, str(folder))


def onnx_file(folder: Path) -> Path:
    """The path of an ONNX artefact's graph, which may not exist."""
    manifest = manifest_of(folder)
    name = "model.onnx" if manifest is None else manifest.get("model_file", "model.onnx")
    return inside(folder, name, str(folder / MANIFEST), CheckpointError)


def holds_onnx(folder: Path) -> bool:
    """Whether a folder is an edgeformer ONNX artefact; a `model.onnx` beside a checkpoint is a third party's."""
    manifest = manifest_of(folder)
    return manifest is not None and manifest.get("format") == "onnx" and onnx_file(folder).exists()


def coreai_asset(folder: Path) -> Path | None:
    """The `NAME.aimodel` of an edgeformer Core AI artefact; None in other folders."""
    manifest = manifest_of(folder)
    if manifest is None or manifest.get("format") != "coreai":
        return None
    return inside(folder, manifest.get("model_file", "model.aimodel"), str(folder / MANIFEST), CheckpointError)


def manifest_of(folder: Path) -> Manifest | None:
    """A folder's manifest; None where there is none.

    Raises:
        CheckpointError: the manifest is damaged.
    """
    return read(folder / MANIFEST, CheckpointError) if (folder / MANIFEST).exists() else None


def config_beside(spec_file: Path) -> tuple[Any, Any]:
    """The config.json beside a spec.json, split by `split_quantization`."""
    config = spec_file.with_name("config.json")
    return split_quantization(read_json(config)) if config.exists() else (None, None)


def split_quantization(config: object) -> tuple[Any, Any]:
    """Split a config into one without MLX's `quantization`, and that value. Once dequantized, the weights fit the former."""
    if not isinstance(config, dict) or "quantization" not in config:
        return config, None
    rest = {k: v for k, v in config.items() if k != "quantization"}
    if rest.get("quantization_config") == config["quantization"]:  # mlx-lm writes it under both names
        del rest["quantization_config"]
    return rest, config["quantization"]


def split_foreign(folder: Path, config: Any, where: str) -> tuple[Any, Callable[[dict[str, StoredTensor]], Joined]]:
    """Split a config into one without `quantization_config`, and what joins the tensors of a weight that another tool quantized.
    Older tools write it as a file of its own.

    Raises:
        ConfigError: weights by this tool aren't read.
    """
    if not isinstance(config, dict):
        return config, lambda stored: Joined(stored, "", {})
    rest, scheme = dict(config), config.get("quantization_config")
    rest.pop("quantization_config", None)
    for name, method in _SETTINGS.items():
        if scheme is None and (folder / name).is_file() and isinstance(found := read_json(folder / name), dict):
            inner = found.get("quantization")
            scheme = {"quant_method": method, **(inner if isinstance(inner, dict) else found)}
    if scheme is None:
        return rest, lambda stored: Joined(stored, "", {})
    join = foreign.reader(scheme, where)
    return rest, lambda stored: join(stored, scheme, str(folder))


_SETTINGS = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Settings files of AutoGPTQ, AutoAWQ and ModelOpt, from before transformers had `quantization_config`."""


def is_mlx(folder: Path) -> bool:
    """Whether MLX wrote the weights: it stores linear maps as [outputs, inputs] even where PyTorch doesn't."""
    return read_metadata(checkpoint_files(folder)[0]).get("format") == "mlx"
