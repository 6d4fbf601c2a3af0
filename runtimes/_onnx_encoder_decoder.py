"""An encoder–decoder artefact in ONNX Runtime: one session each for its encoder and decoder graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.manifest import Manifest
from edgeformer.errors import ArtefactError
from edgeformer.inference.runtime import Options, Session

KEEP = "num_logits_to_keep"
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxEncoderDecoderSession(Session):
    """Caches are inputs and outputs that grow at each step; those of the encoder's output are made in the first step."""

    def __init__(self, folder: Path, manifest: Manifest, options: Options, open_file: Any):
        super().__init__(bundle.read_spec(folder), options)
        self.capacity = min(self.capacity, manifest["context"] or self.capacity)
        self.encoder = open_file({**manifest, "model_file": manifest.get("encoder_file", "")})
        self.decoder = open_file(manifest)
        self.inputs = {i.name: i for i in self.decoder.get_inputs()}
        self.outputs = [o.name for o in self.decoder.get_outputs()]
        made = {o.name for o in self.encoder.get_outputs()}
        if not {"encoder_hidden_states", "use_cache_branch"} <= self.inputs.keys() or "last_hidden_state" not in made:
            raise ArtefactError(
                f"{folder} holds no decoder that takes its encoder's output: an older version wrote it; export the model again"
            )
        self.read: dict[str, np.ndarray] = {}
        self.past: dict[str, np.ndarray] = {}

    def _source(self, ids, mask):
        feed = {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            "attention_mask": np.ascontiguousarray(mask, np.int64),
        }
        (memory,) = self.encoder.run(["last_hidden_state"], feed)
        self.read = {"encoder_hidden_states": memory, "encoder_attention_mask": feed["attention_mask"]}

    def _reset(self):
        self.past = {
            name: np.zeros((self.options.batch, node.shape[1], 0, node.shape[3]), _FLOATS[node.type])
            for name, node in self.inputs.items()
            if name.startswith("past_key_values.")
        }

    def _step(self, ids, mask, all_positions):
        feed = {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            KEEP: np.array([0 if all_positions else 1], np.int64),
            "use_cache_branch": np.array([any(".encoder." in n and x.shape[2] for n, x in self.past.items())]),
            **self.read,
            **self.past,
        }
        logits, *present = self.decoder.run(self.outputs, feed)
        self.past = {n.replace("present", "past_key_values"): x for n, x in zip(self.outputs[1:], present, strict=True)}
        return logits if all_positions else logits[:, -1]
