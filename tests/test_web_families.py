"""Every decoder family that transformers.js knows, in transformers.js under Node. Oracle: transformers' greedy tokens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from family_cases import CASES, DECODERS, settings
from support import ROOT, load_tiny, random_ids, record_errors, saved, small_spec

from edgeformer import load
from edgeformer.api import export
from edgeformer.errors import ExportError
from edgeformer.exporters.onnx.targets.web import MODEL_TYPES

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
WEB = ROOT / "tests" / "web"
node = pytest.mark.skipif(
    shutil.which("node") is None or not (WEB / "node_modules" / "@huggingface").exists(),
    reason="run tests/web/install (Node, npm)",
)
COUNT = 10


@node
def test_families(tmp_path):
    requests, expected = [], {}
    for model_type, case in DECODERS:
        if model_type not in MODEL_TYPES:
            continue
        folder = f"{model_type}-{case}"
        loaded, hf = load_tiny(tmp_path / "hf", model_type, **settings(model_type, CASES[model_type][case]))
        export(loaded, tmp_path / "web" / folder, target="web")
        ids = torch.from_numpy(random_ids(97, 1, 40))
        asked = dict(max_new_tokens=COUNT, do_sample=False, pad_token_id=0, eos_token_id=None)
        made = hf.generate(ids, attention_mask=torch.ones_like(ids), **asked)
        expected[folder] = made[0, 40:].tolist()
        requests.append({"folder": folder, "ids": ids[0].tolist(), "count": COUNT})
        shutil.rmtree(tmp_path / "hf")
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    command = ["node", "families.mjs", str(tmp_path / "web"), str(tmp_path / "requests.json")]
    run = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    answers = {a["folder"]: a for a in map(json.loads, run.stdout.splitlines())}
    wrong = {f: answers.get(f) for f in expected if (answers.get(f) or {}).get("tokens") != expected[f]}
    assert not wrong, wrong
    for folder in expected:
        record_errors("web", folder.replace("-", "@", 1), {"tokens": 0.0})


@node
def test_the_model_types_are_in_its_registry():
    text = (WEB / "node_modules/@huggingface/transformers/src/models/registry.js").read_text()
    assert set(re.findall(r"\['([\w-]+)', '", text)) >= MODEL_TYPES


def test_a_model_type_that_it_does_not_know(tmp_path):
    """One that is the same architecture takes its place, completely; without one, the nearest is named."""
    config = json.loads((ROOT / "edgeformer/models/named/minicpm-1b-sft-bf16.json").read_text())
    (tmp_path / "m").mkdir()
    small = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6, vocab_size=97)
    (tmp_path / "m" / "config.json").write_text(
        json.dumps(config | small | {"num_key_value_heads": 6, "dim_model_base": 16})
    )
    loaded, _ = saved(load(tmp_path / "m").spec, tmp_path / "s")
    export(loaded, tmp_path / "web", target="web")
    assert json.loads((tmp_path / "web" / "config.json").read_text())["model_type"] == "granite"
    other, _ = saved(small_spec(clip=3.0), tmp_path / "n")
    with pytest.raises(
        ExportError, match=r"the nearest is llama, .* blocks\.\*\.attention\.clip = 3\.0 \(none there\)"
    ):
        export(other, tmp_path / "x", target="web")
