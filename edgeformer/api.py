"""The Python API: the commands as functions. `edgeformer.load`, `save`, `build_torch`, `export`, `verify`, `bench`, ...

MODEL arguments accept what `load` accepts, or the `LoadedModel` it returned.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeformer.checkpoint.artefact import Exported
from edgeformer.checkpoint.loading import LoadedModel, load
from edgeformer.checkpoint.saving import save
from edgeformer.errors import CheckpointError
from edgeformer.exporters.dispatch import export_as
from edgeformer.measure.bench import bench
from edgeformer.spec import Model
from edgeformer.verification import parity
from edgeformer.weights.rounding import stored_format

if TYPE_CHECKING:
    from edgeformer.backends.mlx.module import MlxModel
    from edgeformer.backends.torch.module import TorchModel
    from edgeformer.quantization.run import QuantizedCheckpoint

ModelLike = str | os.PathLike | LoadedModel


def _loaded(model: ModelLike) -> LoadedModel:
    return model if isinstance(model, LoadedModel) else load(model)


def build_torch(
    model: ModelLike | Model, *, precision: str = "fp32", device: str = "cpu", dequantize: bool = False
) -> TorchModel:
    """The model as a `torch.nn.Module`, to train, compile or shard.

    Args:
        model: a MODEL with weights (loaded as float32), or a bare spec (freshly initialised by its `init`).
        precision: fp32, fp16 or bf16; loaded weights are rounded to it first.
        device: where the parameters live.
        dequantize: build the dequantized weights, scale · (code − zero), of a quantized checkpoint instead of refusing it.

    Raises:
        CheckpointError: the weights are quantized, and `dequantize` is false.
        RuntimeUnavailable: torch is not installed.
    """
    from edgeformer.inference.lookup import require

    require("torch")
    if isinstance(model, Model):
        from edgeformer.backends.torch.encoder_decoder import torch_model

        return torch_model(model).to(device)
    from edgeformer.runtimes.torch import build_torch as build

    loaded = _loaded(model)
    if loaded.weights is None:
        return build_torch(loaded.spec, device=device)
    if (has := stored_format(loaded.weights)) is not None and not dequantize:
        raise CheckpointError(
            f"{loaded.name} is quantized ({has}): training would start from rounded weights, and saving would not keep"
            " the codes. Train the original, or pass dequantize=True to build the dequantized weights in float32"
        )
    return build(loaded, precision=precision, device=device)


def export(model: ModelLike, output: str | os.PathLike, *, to: str = "onnx", **options: Any) -> Exported:
    """Write MODEL as an artefact. `options` are those of the format's exporter: `edgeformer.exporters.onnx.exporter.export_onnx`,
    `edgeformer.exporters.mlx.exporter.export_mlx` and so on.

    Raises:
        ExportError: MODEL can't be written as asked; nothing is left behind.
        InputError: there is no such format, or it has no such option.
    """
    return export_as(_loaded(model), output, to, **options)


def quantize(model: ModelLike, output: str | os.PathLike, **options: Any) -> QuantizedCheckpoint:
    """Write MODEL as a quantized checkpoint. `options` are those of `edgeformer.quantization.run.quantize`.

    Raises:
        InputError, CheckpointError: see there.
    """
    from edgeformer.quantization.run import quantize as run_quantize

    return run_quantize(_loaded(model), output, **options)


def build_mlx(model: ModelLike | Model, *, precision: str = "fp32") -> MlxModel:
    """The model as an `mlx.nn.Module`, to train, quantize or run.

    Args:
        model: a MODEL with weights (loaded), or a bare spec (freshly initialised by its `init`).
        precision: fp32, fp16 or bf16, of weights and activations.

    Raises:
        RuntimeUnavailable: MLX is not installed.
    """
    from edgeformer.inference.lookup import require

    require("mlx")
    if isinstance(model, Model):
        from edgeformer.backends.mlx.encoder_decoder import mlx_model

        return mlx_model(model)
    from edgeformer.runtimes.mlx import build_mlx as build

    loaded = _loaded(model)
    return build_mlx(loaded.spec) if loaded.weights is None else build(loaded, precision=precision)


def verify(artefact: str | os.PathLike, against: ModelLike, **options: Any) -> parity.Verdict:
    """Check an artefact against its original. `options` are those of `edgeformer.verification.parity.verify`."""
    return parity.verify(Path(artefact), _loaded(against), **options)


def native_library() -> Path:
    """The native library, for `onnxruntime.SessionOptions.register_custom_ops_library`; it is built now if necessary.

    Raises:
        RuntimeUnavailable: it isn't there and can't be built: no CMake or C++ compiler, or the build failed.
    """
    from edgeformer.backends.native.library import LIBRARY

    return LIBRARY.path()


__all__ = ["bench", "build_mlx", "build_torch", "export", "load", "native_library", "quantize", "save", "verify"]
