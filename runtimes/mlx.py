"""MLX: the spec built natively, packed, decoded by one compiled step. Variants switch the custom Metal kernels on or off, and
the KV cache to int8."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import LoadedModel, load
from edgeformer.errors import RuntimeUnavailable
from edgeformer.exporters.mlx.exporter import CODE_NAME, MODEL_FILE
from edgeformer.inference import runtime as base
from edgeformer.inference.profile import layer_clock
from edgeformer.inference.runtime import Options, Session
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.ops.sampling import Sampling
from edgeformer.runtimes._encoder_decoder import EncoderDecoderSession
from edgeformer.spec.serialization import digest
from edgeformer.spec.task import Task


def build_mlx(loaded: LoadedModel, *, precision: str = "fp32") -> Any:
    """Build the model as an `edgeformer.backends.mlx.MlxModel` with its weights, to train, quantize or run.

    precision: fp32, fp16 or bf16, of weights and activations.
    """
    from edgeformer.backends.mlx.load import load_model

    exact_float32()
    return load_model(loaded.spec, loaded.require_weights(), precision)


def exact_float32() -> None:
    """Make fp32 mean fp32: by default MLX multiplies float32 in TF32 (three decimal digits) on GPUs that support it.

    Call it before MLX is imported. A value that the user has set stays.
    """
    os.environ.setdefault("MLX_ENABLE_TF32", "0")


def back_end_missing() -> str | None:
    """None, or what is missing: on Linux the package `mlx` alone has no back end."""
    exact_float32()
    try:
        import mlx.core  # noqa: F401
    except ImportError as e:
        return f'mlx has no back end here ({e}); pip install "mlx[cpu]", or "mlx[cuda13]" with an NVIDIA GPU'
    return None


def has_gpu() -> bool:
    """Whether a build of MLX with GPU kernels is installed; imports nothing."""
    return any(_installed(f"mlx-{name}") for name in ("metal", "cuda-12", "cuda-13"))


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


class MlxSession(Session):
    """Weights and activations in the requested precision. MLX has no option for the number of CPU threads."""

    def __init__(self, loaded: LoadedModel, options: Options):
        import mlx.core as mx

        from edgeformer.backends.mlx.decode import DecodeSession
        from edgeformer.backends.mlx.fit import check_fit, needed_bytes
        from edgeformer.backends.mlx.load import load_model, loaded_bytes
        from edgeformer.backends.mlx.metal._choice import choose, subject
        from edgeformer.backends.mlx.ops import MlxOps
        from edgeformer.backends.mlx.store import Int8Store, MlxStore

        super().__init__(loaded.spec, options)
        if options.variant == "kv-int8":
            self.compute = "int8"
        self.mx, weights = mx, loaded.require_weights()
        size = loaded_bytes(weights, options.precision)
        check_fit(needed_bytes(loaded.spec, size, options.batch, self.capacity, options.precision), loaded.name)
        kernels = choose(options.variant, subject(digest(loaded.spec), weights.dtypes(), options.precision))
        self.model = load_model(loaded.spec, weights, options.precision, MlxOps(kernels))
        self.model.pack()
        self.decoder = None
        if loaded.spec.task == Task.TEXT_GENERATION:
            compiled = options.variant == "compile" or (options.variant != "eager" and mx.default_device() == mx.gpu)
            compiled = compiled and not loaded.spec.prefixed  # the prefix length would be compiled in
            store = Int8Store if options.variant == "kv-int8" else MlxStore
            self.decoder = DecodeSession(self.model, options.batch, self.capacity, compiled=compiled, store=store)

    def _reset(self):
        assert self.decoder is not None
        self.decoder.reset()

    def _step(self, ids, mask, all_positions):
        mx, decoder = self.mx, self.decoder
        assert decoder is not None
        padded = None if mask.all() else mx.array(mask.astype(np.int32))
        tokens = mx.array(ids.astype(np.int32))
        decoder.prefix = None if self.prefix is None else mx.array(self.prefix.astype(np.int32))
        if ids.shape[1] == 1 and self.length:
            logits = decoder.step(tokens[:, 0], padded)[:, None]
        else:
            logits = decoder.prefill(tokens, padded, keep=0 if all_positions else 1)
        y = np.array(logits.astype(mx.float32))
        return y if all_positions else y[:, -1]

    def _tokens(self, prompt: list[int], count: int, sampling: Sampling) -> Iterator[int]:
        assert self.decoder is not None
        return self.decoder.stream(self.mx.array([prompt]), count, sampling)

    def _encode(self, inputs):
        mx = self.mx
        arrays = {k: mx.array(v.astype(np.int32)) for k, v in inputs.items()}
        outputs = self.model(arrays["input_ids"], arrays["attention_mask"], None, arrays.get("token_type_ids"))
        return {k: np.array(v.astype(mx.float32)) for k, v in outputs.items()}

    def profile(self, call, before=None):
        """None when compiled: the step is then one function, without layers to time."""
        if self.decoder is not None and self.decoder.compiled:
            return None
        if before is not None:
            before()
        with layer_clock(self.model.ops, self._wait) as found:
            call()
        return list(found.values())

    def _wait(self, values: object) -> None:
        mx = self.mx
        flat = (
            values.values() if isinstance(values, dict) else values if isinstance(values, (tuple, list)) else (values,)
        )
        mx.eval([v for v in flat if isinstance(v, mx.array)])
        for inner in flat:
            if isinstance(inner, (tuple, list, dict)):
                self._wait(inner)

    def peak_gpu_bytes(self):
        return self.mx.get_peak_memory() if self.mx.default_device() == self.mx.gpu else None

    def facts(self):
        device = self.mx.device_info().get("device_name", "")
        compiled = self.decoder is not None and self.decoder.compiled
        kernels = sorted(self.model.ops.kernels)
        return {
            "kernels": kernels,
            "device": f"{self.mx.default_device().type.name} {device}".strip(),
            "compiled": compiled,
            "kv": "int8" if self.options.variant == "kv-int8" else self.options.precision,
        }


def tune_here(loaded: LoadedModel, precision: str, **options: Any) -> Any:
    """Measure the Metal kernels on this model and machine, and store which of them are faster.

    Returns:
        An `edgeformer.backends.mlx.metal._tune.Tuning`. `options` are those of its `tune`.

    Raises:
        RuntimeUnavailable: Metal is not available.
        InputError: the model is an encoder.
    """
    exact_float32()
    import mlx.core as mx

    from edgeformer.backends.mlx import metal
    from edgeformer.backends.mlx.launches import require_decoder
    from edgeformer.backends.mlx.load import load_model
    from edgeformer.backends.mlx.metal import _choice
    from edgeformer.backends.mlx.metal._tune import tune

    require_decoder(loaded.spec)
    if not mx.metal.is_available():
        raise RuntimeUnavailable(
            "tuning measures Metal kernels: it needs an Apple GPU, and Metal is not available here"
        )
    _choice.prepare()
    weights = loaded.require_weights()
    model = load_model(loaded.spec, weights, precision)
    model.pack()
    made = tune(model, {name: metal.get(name) for name in metal.names()}, **options)
    _choice.save(_choice.subject(digest(loaded.spec), weights.dtypes(), precision), made.as_dict())
    return made


def _encoder_decoder(loaded: LoadedModel, spec: EncoderDecoder, options: Options) -> Session:
    import mlx.core as mx

    model = build_mlx(loaded, precision=options.precision)
    return EncoderDecoderSession(
        spec,
        options,
        model.ops,
        model,
        lambda x: mx.array(x.astype(np.int32)),
        lambda y: np.array(y.astype(mx.float32)),
        mx.eval,
    )


class Runtime(base.Runtime):
    """MLX on Apple silicon, CUDA or CPU."""

    opens = "checkpoint"
    also_opens = ("mlx",)
    packages = ("mlx",)
    extra = "mlx"
    variants = ("compile", "eager", "kernels", "ops", "kv-int8")
    tasks = base.EVERY_TASK
    prefixes = True

    @property
    def slow(self) -> bool:  # type: ignore[override]
        """MLX without a GPU is only a correctness oracle: on Linux its matrix products come from a reference library."""
        return not has_gpu()

    def unavailable(self) -> str | None:
        return super().unavailable() or back_end_missing()

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        exact_float32()
        if isinstance(source, Path):  # an exported folder is a checkpoint, too
            manifest = bundle.opened(source, {CODE_NAME: MODEL_FILE})  # code that this runtime doesn't run
            precision = (
                manifest["compute"] if has_gpu() else "fp32"
            )  # on CPU, MLX also sums half precision in half precision
            session = MlxSession(load(source), replace(options, precision=precision))
            session.compute = session.compute or precision
            return session
        if isinstance(source.spec, EncoderDecoder):
            return _encoder_decoder(source, source.spec, options)
        return MlxSession(source, options)
