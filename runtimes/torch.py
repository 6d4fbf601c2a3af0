"""PyTorch, eager or with `torch.compile` (variant `compile`), on the CPU, CUDA or an Apple GPU (variants `cuda`, `mps`)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import RuntimeUnavailable
from edgeformer.inference import runtime as base
from edgeformer.inference.profile import layer_clock
from edgeformer.inference.runtime import Options, Session
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.runtimes._encoder_decoder import EncoderDecoderSession
from edgeformer.runtimes._precision import rounded
from edgeformer.spec.task import Task


def build_torch(loaded: LoadedModel, *, precision: str = "fp32", device: str = "cpu") -> Any:
    """Build the model as an `edgeformer.backends.torch.module.TorchModel` in float32, with its weights, in eval mode.

    precision: fp32, fp16 or bf16, to which the weights are rounded first.
    """
    import torch

    from edgeformer.backends.torch.encoder_decoder import torch_model

    with torch.device("meta"):
        model = torch_model(loaded.spec)
    model = model.materialize(device)
    weights, state = rounded(loaded.require_weights(), precision), model.state_dict()
    for name, tensor in state.items():
        tensor.copy_(torch.from_numpy(weights[name].copy()))
    return model.eval()


class TorchSession(Session):
    """float32 arithmetic; each layer's K/V live in one buffer of full capacity."""

    def __init__(self, loaded: LoadedModel, options: Options):
        import torch

        from edgeformer.backends.torch.store import FixedStore

        super().__init__(loaded.spec, options)
        torch.set_num_threads(options.threads)
        if torch.get_num_interop_threads() != 1:
            with contextlib.suppress(RuntimeError):  # torch allows this once, before any parallel work
                torch.set_num_interop_threads(1)
        device = options.variant if options.variant in ("mps", "cuda") else options.device
        if device == "mps" and not torch.backends.mps.is_available():
            raise RuntimeUnavailable("torch finds no Apple GPU here (mps); use the runtime torch without :mps")
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailable("torch finds no NVIDIA GPU here; use the runtime torch without :cuda")
        self.torch, self.device = torch, torch.device(device)
        self.model = build_torch(loaded, precision=options.precision, device=device)
        self.call = self.model
        compiled = options.variant == "compile"
        if compiled:
            self.call = torch.compile(self.model, fullgraph=True)
        self.store = None
        if loaded.spec.task == Task.TEXT_GENERATION:
            self.store = FixedStore(self.model, options.batch, self.capacity, whole=compiled)

    def _step(self, ids, mask, all_positions):
        torch, store = self.torch, self.store
        assert store is not None
        start, end = self.length, mask.shape[1]
        with torch.inference_mode():
            tokens = torch.from_numpy(np.ascontiguousarray(ids)).to(self.device)
            full = None
            if store.whole or not mask.all():
                padded = np.zeros((mask.shape[0], self.capacity), np.int64) if store.whole else mask
                padded[:, :end] = mask
                full = torch.from_numpy(np.ascontiguousarray(padded)).to(self.device)
            positions = torch.from_numpy(np.clip(mask.cumsum(1) - 1, 0, None)[:, start:]).to(self.device)
            store.place(torch.arange(start, end, device=self.device), end)
            y = self.call(
                tokens,
                full,
                positions,
                store=store,
                keep=0 if all_positions else 1,
                prefix_length=None if self.prefix is None else torch.from_numpy(self.prefix).to(self.device),
            )
            y = y.float().cpu().numpy()
        return y if all_positions else y[:, -1]

    def profile(self, call, before=None):
        """None when compiled: no layers are left to time."""
        if self.call is not self.model:
            return None
        if before is not None:
            before()
        with layer_clock(self.model.ops, self._wait) as found:
            call()
        return list(found.values())

    def _wait(self, _: object) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()
        elif self.device.type == "mps":
            self.torch.mps.synchronize()

    def peak_gpu_bytes(self):
        """By torch's own counters; MPS has no peak counter, so the memory that its driver holds now."""
        if self.device.type == "cuda":
            return self.torch.cuda.max_memory_allocated()
        return self.torch.mps.driver_allocated_memory() if self.device.type == "mps" else None

    def facts(self):
        name = self.torch.cuda.get_device_name() if self.device.type == "cuda" else ""
        return {"device": f"{self.device.type} {name}".strip(), "kv": "fp32", "weights_mmap": False}

    def _encode(self, inputs):
        torch = self.torch
        with torch.inference_mode():
            tensors = {k: torch.from_numpy(np.ascontiguousarray(v)).to(self.device) for k, v in inputs.items()}
            outputs = self.call(tensors["input_ids"], tensors["attention_mask"], None, tensors.get("token_type_ids"))
            return {k: v.float().cpu().numpy() for k, v in outputs.items()}


def _encoder_decoder(loaded: LoadedModel, spec: EncoderDecoder, options: Options) -> Session:
    import torch

    torch.set_num_threads(options.threads)
    model = build_torch(loaded, precision=options.precision, device=options.device)
    model.requires_grad_(False)

    def array(x: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(x)).to(options.device)

    return EncoderDecoderSession(spec, options, model.ops, model, array, lambda y: y.float().cpu().numpy())


class Runtime(base.Runtime):
    """PyTorch on any of its devices."""

    opens = "checkpoint"
    packages = ("torch",)
    extra = "torch"
    variants = ("compile", "cuda", "mps")
    tasks = base.EVERY_TASK
    prefixes = True

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        assert isinstance(source, LoadedModel)
        if isinstance(source.spec, EncoderDecoder):
            return _encoder_decoder(source, source.spec, options)
        return TorchSession(source, options)
