"""The promise: a new attention, a new family and a new runtime are one file each, outside the package, and run everywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tolerances
from safetensors.numpy import save_file
from support import random_ids, run_cached, sessions

import edgeformer
from edgeformer import discover
from edgeformer.backends.numpy import NumpyModel
from edgeformer.checkpoint.loading import load
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.spec import tensors
from edgeformer.verification.parity import verify

ATTENTION = '''
"""Linear-decay attention: one key head whose keys are remembered, values gated by a vector of its own."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Any, ClassVar
from edgeformer.layers.mask import Mask
from edgeformer.spec import Declaration, Layer, Linear, Node, Vector


@dataclass(frozen=True, kw_only=True)
class GatedValueAttention(Layer):
    kind: ClassVar[str] = "gated_value_attention"
    heads: int
    head_dim: int
    mask: Mask = Mask()

    def params(self, width: int) -> dict[str, Declaration]:
        inner = self.heads * self.head_dim
        return {
            "q": Linear(width, inner),
            "shared": Linear(width, self.head_dim),
            "value": Linear(width, self.head_dim),
            "gate": Vector(self.head_dim, fill=0.5),
            "o": Linear(inner, width, residual=True),
        }

    def per_step(self) -> tuple[Node, ...]:
        return (self.mask,)

    def cache(self) -> dict[str, tuple[int, int]]:
        return {"keys": (1, self.head_dim), "gated": (1, self.head_dim)}

    def apply(self, ops: Any, p: Any, x: Any, step: Any) -> Any:
        q = ops.split_heads(p.q(x), self.heads, self.head_dim)
        k = ops.split_heads(p.shared(x), 1, self.head_dim)
        v = ops.split_heads(p.value(x) * ops.sigmoid(p.gate), 1, self.head_dim)
        if (slot := step.slot(p)) is not None:
            k, v = slot.append(keys=k, gated=v)
        y = ops.attention(q, k, v, step.tables[self.mask], None, groups=self.heads, scale=0.25)
        return p.o(ops.merge_heads(y, self.heads * self.head_dim))
'''
FAMILY = '''
"""A family whose blocks have that attention."""
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models._family import Family
from one_file_attention import GatedValueAttention

NAMES = {"embed.weight": "tok.weight", "layers.{i}.attention.q.weight": "blocks.{i}.query.weight"}


def spec(config):
    norm = RMSNorm(eps=1e-5)
    attention = GatedValueAttention(heads=config.size("heads"), head_dim=config.size("head_dim"))
    block = Block(attention=attention, ffn=GLU(hidden=config.size("ffn")), norm=norm)
    blocks = (block,) * config.size("depth")
    return Decoder(vocab=config.size("vocab"), width=config.size("width"), context=64, blocks=blocks, norm=norm)


FAMILY = Family(spec, NAMES)
'''
RUNTIME = '''
"""A runtime that runs ONNX artefacts by onnx's own reference evaluator."""
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from edgeformer.checkpoint import bundle
from edgeformer.inference import runtime as base
from edgeformer.inference.runtime import Session


class EvaluatorSession(Session):
    def __init__(self, folder, options):
        super().__init__(bundle.read_spec(folder), options)
        self.evaluator = ReferenceEvaluator(onnx.load(str(folder / "model.onnx")))
        inputs = self.evaluator.proto_.graph.input
        self.past = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in inputs if "past" in i.name}
        self.names = [i.name for i in inputs]
        self._reset()

    def _reset(self):
        self.caches = {n: np.zeros((self.options.batch, d[1], 0, d[3]), np.float32) for n, d in self.past.items()}

    def _step(self, ids, mask, all_positions):
        feed = {"input_ids": ids, "attention_mask": mask, **self.caches}
        if "position_ids" in self.names:
            feed["position_ids"] = np.clip(mask.cumsum(1) - 1, 0, None)[:, -ids.shape[1] :]
        feed["num_logits_to_keep"] = np.array([0 if all_positions else 1])
        logits, *present = self.evaluator.run(None, feed)
        self.caches = dict(zip(self.past, present, strict=True))
        return logits if all_positions else logits[:, -1]


class Runtime(base.Runtime):
    opens = "onnx"
    packages = ("onnx",)

    def target(self, variant):
        return "portable"

    def open(self, source, options):
        return EvaluatorSession(source, options)
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Three modules in a folder that is no part of the package, announced as entry points announce them."""
    for name, text in (("one_file_attention", ATTENTION), ("one_file_family", FAMILY), ("one_file_runtime", RUNTIME)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = {
        "edgeformer.layers": {"gated_value_attention": "one_file_attention"},
        "edgeformer.models": {"gated_decoder": "one_file_family"},
        "edgeformer.runtimes": {"evaluator": "one_file_runtime"},
    }
    monkeypatch.setattr(discover, "_entry_points", lambda group: points.get(group, {}))
    return tmp_path


def test_each_is_one_file(outside):
    torch = pytest.importorskip("torch")
    config = {
        "model_type": "gated_decoder",
        "heads": 3,
        "head_dim": 12,
        "ffn": 40,
        "depth": 2,
        "vocab": 31,
        "width": 32,
    }
    folder = outside / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    shapes = tensors(load(folder).spec)
    weights = {n: (rng.standard_normal(s) * 0.3).astype(np.float32) for n, s in shapes.items()}
    theirs = {
        "embed.weight": "tok.weight",
        **{f"layers.{i}.attention.q.weight": f"blocks.{i}.query.weight" for i in (0, 1)},
    }
    stored = {theirs.get(name, name): w for name, w in weights.items()}
    save_file(stored, folder / "model.safetensors")
    loaded = load(folder)
    ids, valid = random_ids(31, 2, 24), np.ones((2, 24), np.int64)
    valid[1, :5] = 0
    real = valid.astype(bool)
    expected = NumpyModel(loaded.spec, weights, np.float64)(ids, valid)[0]["logits"]
    assert len(edgeformer.build_torch(loaded)(torch.from_numpy(ids)).shape) == 3
    opened = sessions(loaded, outside, batch=2, capacity=32)
    opened["evaluator"] = require("evaluator")[0].open(outside / "onnx-portable", Options(batch=2, capacity=32))
    assert len(opened) == 6
    for name, session in opened.items():
        logits = run_cached(session, ids, valid, 14)
        assert np.abs(logits - expected)[real].max() <= tolerances.LAYER, name
    verdict = verify(outside / "onnx-portable", loaded, runtime="evaluator", length=20, generate=6)
    assert verdict.verdict == "pass"
