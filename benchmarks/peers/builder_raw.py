"""Plain onnxruntime on the GenAI builder's export: IOBinding, one shared max-length buffer per key and value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from edgeformer.checkpoint import bundle
from edgeformer.inference import runtime as base
from edgeformer.inference.runtime import Options, Session
from edgeformer.spec import layers
from edgeformer.spec.task import Task


class RawSession(Session):
    """What a careful user writes by hand: cache buffers bound once, ids and mask per step."""

    def __init__(self, folder: Path, options: Options):
        super().__init__(bundle.read_spec(folder), options)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
        settings.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), settings)
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.binding = self.session.io_binding()
        heads, dim = next(size for _, layer, _ in layers(self.spec) for size in layer.cache().values())
        for name in self.inputs:
            if name.startswith("past_key_values."):
                shape = (options.batch, heads, self.capacity, dim)
                cache = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                self.binding.bind_ortvalue_input(name, cache)
                self.binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cache)

    def _step(self, ids, mask, all_positions):
        self.binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids, np.int64))
        self.binding.bind_cpu_input("attention_mask", np.ascontiguousarray(mask, np.int64))
        if "position_ids" in self.inputs:
            positions = np.arange(self.length, mask.shape[1], dtype=np.int64)[None]
            self.binding.bind_cpu_input("position_ids", positions)
        self.binding.bind_output("logits")
        self.session.run_with_iobinding(self.binding)
        logits = self.binding.get_outputs()[-1].numpy()
        return logits.copy() if all_positions else logits[:, -1].copy()


class Runtime(base.Runtime):
    """Raw ONNX Runtime."""

    opens = "onnx"
    tasks = (Task.TEXT_GENERATION,)
    packages = ("onnxruntime",)

    def open(self, source: Path, options: Options) -> Session:  # type: ignore[override]
        return RawSession(source, options)
