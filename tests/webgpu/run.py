"""Prefill and cached steps of an artefact on ONNX Runtime's WebGPU plugin: `run.py FOLDER 'ids' PREFILL OUT.npz`.

A program of its own: the driver is chosen by environment variables that must be set before it starts. Writes the logits of every
position, and which provider ran each kind of node.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import onnxruntime_ep_webgpu as plugin

folder, ids, prefill, out = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
manifest = json.loads((folder / "edgeformer.json").read_text())
onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == plugin.get_ep_name()][:1]
if not devices:
    sys.exit("no WebGPU device")
settings = onnxruntime.SessionOptions()
settings.add_provider_for_devices(devices, {})
settings.enable_profiling, settings.profile_file_prefix = True, out
settings.log_severity_level = 3
session = onnxruntime.InferenceSession(str(folder / manifest["model_file"]), settings)
types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
inputs = {i.name: i for i in session.get_inputs()}
outputs = [o.name for o in session.get_outputs()]
past = {
    n: np.zeros((1, i.shape[1], 0, i.shape[3]), types[i.type])
    for n, i in inputs.items()
    if n.startswith("past_key_values.")
}
rows = []
for start, end in [(0, prefill), *((i, i + 1) for i in range(prefill, len(ids)))]:
    feed = {
        "input_ids": np.array([ids[start:end]], np.int64),
        "attention_mask": np.ones((1, end), np.int64),
        "position_ids": np.arange(start, end)[None],
        **past,
    }
    made = dict(zip(outputs, session.run(None, {k: v for k, v in feed.items() if k in inputs}), strict=True))
    past = {n: made[n.replace("past_key_values", "present")] for n in past}
    rows.append(made["logits"][0])
ran = Counter()
for event in json.loads(Path(session.end_profiling()).read_text()):
    if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
        ran[event["args"]["op_name"] + " " + event["args"]["provider"].removesuffix("ExecutionProvider")] += 1
np.savez(out, logits=np.concatenate(rows), ran=json.dumps(ran))
