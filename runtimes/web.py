"""ONNX Runtime Web on an artefact of the target `web`: in headless Chromium on WebAssembly, or (variant `node`) under Node.

Variant `webgpu` uses the browser's WebGPU. Time is measured inside the page or process, by its own clock, which leaves out the
transport of commands and answers.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.inference import runtime as base
from edgeformer.inference.runtime import Options, Session
from edgeformer.runtimes._web_host import Browser, Host, Node, browser, install_line, installed_version

_TYPES = {1: "float32", 7: "int64", 10: "float16"}  # onnx.TensorProto's


class WebSession(Session):
    """Each step's present K/V are the next step's past, and stay inside the page."""

    def __init__(self, folder: Path, options: Options):
        manifest = bundle.opened(folder)
        super().__init__(bundle.read_spec(folder), options)
        self.capacity = min(self.capacity, manifest["context"] or self.capacity)
        self.host: Host = Node() if options.variant == "node" else Browser(folder, gpu=options.variant == "webgpu")
        file = bundle.model_files(folder, manifest)[0]
        inputs = _inputs(file)
        self.inputs = inputs
        data = [f for f in sorted(file.parent.iterdir()) if f.name.startswith(file.name) and f != file]
        head, _ = self.host.ask(
            {
                "do": "open",
                "model": self.host.address(file),
                "data": [{"path": f.name, "file": self.host.address(f)} for f in data],
                "version": installed_version(),
                "settings": {
                    "threads": options.threads,
                    "provider": "webgpu" if options.variant == "webgpu" else "wasm",
                    "inputs": inputs,
                    "batch": options.batch,
                },
            }
        )
        self.agent, self.peak, self.fresh = head["agent"], None, True
        self.isolated = head.get("isolated", True)

    def _reset(self):
        self.fresh = True

    def _step(self, ids, mask, all_positions):
        positions = np.clip(mask.cumsum(1) - 1, 0, None)[:, -ids.shape[1] :]
        arrays = {"ids": ids, "mask": mask, "positions": positions}
        head, values = self._run(arrays, ["logits"], keep=0 if all_positions else 1)
        logits = values.reshape(head["shapes"][0]).copy()
        return logits if all_positions else logits[:, -1]

    def _encode(self, inputs):
        arrays = {"ids": inputs["input_ids"], "mask": inputs["attention_mask"]}
        arrays["types"] = inputs.get("token_type_ids", np.zeros_like(inputs["input_ids"]))
        wanted = list(self.spec.outputs())
        head, values = self._run(arrays, wanted)
        sizes = [int(np.prod(shape)) for shape in head["shapes"]]
        parts = np.split(values, np.cumsum(sizes)[:-1])
        return {n: p.reshape(s).copy() for n, p, s in zip(wanted, parts, head["shapes"], strict=True)}

    def _run(self, arrays: dict[str, np.ndarray], wanted: list[str], keep: int = 0) -> tuple[dict, np.ndarray]:
        batch, length = arrays["ids"].shape
        command: dict[str, Any] = {name: array.reshape(-1).tolist() for name, array in arrays.items()}
        command |= {"do": "run", "batch": batch, "length": length, "total": arrays["mask"].shape[1]}
        head, values = self.host.ask({**command, "keep": keep, "wanted": wanted, "reset": self.fresh})
        self.fresh, self.took_ns, self.peak = False, head["ns"], head.get("peak")
        return head, values

    def peak_memory(self):
        """Node reports its own; Chromium's processes share memory, so their sizes can't be added up."""
        source = "Node's maxRSS" if self.peak else None
        return {"peak_rss_bytes": self.peak, "rss_source": source, "peak_footprint_bytes": None}

    def facts(self):
        past = next((i["type"] for n, i in self.inputs.items() if n.startswith("past_key_values.")), None)
        return {
            "device": "gpu" if self.options.variant == "webgpu" else "cpu",
            "provider": "ORT-Web WebGPU" if self.options.variant == "webgpu" else "ORT-Web WebAssembly",
            "agent": self.agent,
            "threads": self.options.threads if self.isolated else 1,
            "kv": {"float32": "fp32", "float16": "fp16"}.get(past or ""),
            "cache": "growing",
            **({"prefill_logits": "all"} if past and "num_logits_to_keep" not in self.inputs else {}),
            "weights_mmap": False,
        }


def _inputs(file: Path) -> dict[str, dict[str, Any]]:
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    found, fixed = {}, {initializer.name for initializer in graph.initializer}
    for value in graph.input:
        if value.name in fixed:  # ONNX Runtime Web doesn't allow overriding initializers
            continue
        kind = value.type.tensor_type
        found[value.name] = {"type": _TYPES[kind.elem_type], "shape": [d.dim_value for d in kind.shape.dim]}
    return found


class Runtime(base.Runtime):
    """onnxruntime-web; npm installs it."""

    opens = "onnx"
    variants = ("node", "webgpu")

    def unavailable(self):
        return None if installed_version() else f"onnxruntime-web is not installed; {install_line()}"

    def versions(self):
        return {"onnxruntime-web": installed_version() or ""}

    def refuses(self, spec, options):
        if options.variant == "node" and shutil.which("node") is None:
            return "Node is not installed; install it, or use the runtime web in a browser"
        if options.variant != "node" and browser() is None:
            return (
                "Chromium is not installed (install it, or name one in EDGEFORMER_CHROMIUM); web:node runs under Node"
            )
        return super().refuses(spec, options)

    def target(self, variant):
        return "web"

    def declines(self, manifest, variant):
        if manifest["target"] != "web":
            return f"it reads only the target web, not {manifest['target']}; export with --target web"
        return None

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        assert isinstance(source, Path)
        return WebSession(source, options)
