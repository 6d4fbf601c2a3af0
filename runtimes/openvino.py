"""OpenVINO on an ONNX artefact of the target `portable`. Its KV caches are inputs and outputs; devices other than the CPU are
variants (`openvino:gpu`, `openvino:npu`).

Neither activations (OpenVINO's default for group-quantized weights) nor the KV cache are rounded to int8 here: other rows keep
both in float32. Variant `default` leaves OpenVINO's defaults.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import ArtefactError, RuntimeUnavailable
from edgeformer.inference import runtime as base
from edgeformer.inference.profile import Operation, block_of
from edgeformer.inference.runtime import Options, Session

TARGETS = ("portable",)


class OpenVinoSession(Session):
    """A compiled model and one infer request; each step's outputs are the next one's inputs."""

    def __init__(self, folder: Path, options: Options):
        # not `import openvino`: where that package is missing, a type checker takes this file for it
        openvino = import_module("openvino")
        manifest = bundle.opened(folder)
        super().__init__(bundle.read_spec(folder), options)
        self.capacity = min(self.capacity, manifest["context"] or self.capacity)
        self.openvino = openvino
        self.core, self.file = openvino.Core(), bundle.model_files(folder, manifest)[0]
        self.where = options.variant.upper() if options.variant in ("gpu", "npu") else "CPU"
        if self.where not in {device.split(".")[0] for device in self.core.available_devices}:
            have = ", ".join(self.core.available_devices)
            raise RuntimeUnavailable(f"OpenVINO finds no {self.where} here; available devices: {have}")
        self.exact = options.variant != "default"
        self.compiled = self._compile()
        self.inputs = {i.any_name: i for i in self.compiled.inputs}
        self.outputs = [o.any_name for o in self.compiled.outputs]
        self.past = [n for n in self.inputs if n.startswith("past_key_values.")]
        self.request = self.compiled.create_infer_request()
        self._reset()

    def _compile(self, **more: Any) -> Any:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(self.options.threads),
            **more,
        }
        if self.exact:
            settings |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
            settings |= {"KV_CACHE_PRECISION": "f32"} if self.where == "CPU" else {}
        try:
            return self.core.compile_model(str(self.file), self.where, settings)
        except RuntimeError as e:
            raise ArtefactError(f"OpenVINO can't load {self.file}: {str(e).strip().splitlines()[-1]}") from e

    def _reset(self):
        self.caches = {}
        for name in self.past:
            node = self.inputs[name]
            heads, dim = node.partial_shape[1].get_length(), node.partial_shape[3].get_length()
            zeros = np.zeros((self.options.batch, heads, 0, dim), node.element_type.to_dtype())
            self.caches[name] = self.openvino.Tensor(zeros)

    def _step(self, ids, mask, all_positions):
        positions = np.clip(mask.cumsum(1) - 1, 0, None)[:, -ids.shape[1] :]
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "num_logits_to_keep": np.array([0 if all_positions else 1], np.int64),
        }
        self._infer({**{k: np.ascontiguousarray(v, np.int64) for k, v in given.items()}, **self.caches})
        for name in self.past:  # a copy: the next run overwrites its outputs
            data = self.request.get_tensor(name.replace("past_key_values", "present")).data
            self.caches[name] = self.openvino.Tensor(data.copy())
        logits = self.request.get_tensor("logits").data.astype(np.float32)
        return logits if all_positions else logits[:, -1]

    def _infer(self, feed: dict[str, Any]) -> None:
        self.request.infer({name: value for name, value in feed.items() if name in self.inputs})

    def _encode(self, inputs):
        feed = {k: np.ascontiguousarray(v, np.int64) for k, v in inputs.items()}
        if "token_type_ids" in self.inputs and "token_type_ids" not in feed:
            feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
        self._infer(feed)
        return {name: self.request.get_tensor(name).data.astype(np.float32) for name in self.outputs}

    def profile(self, call, before=None):
        """Profiled by OpenVINO's own counters, for the last run of the call."""
        plain, request = self.compiled, self.request
        self.compiled = self._compile(PERF_COUNT="YES")
        self.request = self.compiled.create_infer_request()
        if before is not None:
            before()
        call()
        found: dict[tuple[str, str], Operation] = {}
        for entry in self.request.profiling_info:
            ns = int(entry.real_time.total_seconds() * 1e9)
            key = (_block(entry.node_name), entry.node_type)
            operation = found.setdefault(key, Operation(*key))
            operation.ns += ns
            operation.count += 1
        self.compiled, self.request = plain, request
        return list(found.values())

    def facts(self):
        past = self.inputs[self.past[0]].element_type.get_type_name() if self.past else None
        return {
            "device": "cpu" if self.where == "CPU" else "gpu",
            "provider": f"OpenVINO {self.where}",
            "kv": {"f32": "fp32", "f16": "fp16"}.get(past or ""),
            "cache": "growing",
            "weights_mmap": True,
        }


def _block(name: str) -> str:
    """The block by the exported node's name; an operation that OpenVINO fused into an output has the output's name."""
    return "head" if name.startswith("logits") else "attention" if name.startswith("present.") else block_of(name)


class Runtime(base.Runtime):
    """OpenVINO on the CPU, an Intel GPU or NPU."""

    opens = "onnx"
    packages = ("openvino",)
    extra = "openvino"
    variants = ("default", "gpu", "npu")

    def target(self, variant):
        return "portable"

    def declines(self, manifest, variant):
        if manifest["target"] not in TARGETS:
            return f"it reads only the target portable, not {manifest['target']}; export with --target portable"
        return None

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        assert isinstance(source, Path)
        return OpenVinoSession(source, options)
