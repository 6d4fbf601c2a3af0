"""Exported encoders with heads in the tools that people run them in: Optimum, and transformers.js under Node.

The oracle is transformers' own class on the checkpoint; `tests/optimum_heads.py` and `tests/web/heads.mjs` run the folders.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tolerances
from encoder_cases import ENCODERS, encoder_settings
from support import ROOT, load_tiny, random_ids

from edgeformer import load
from edgeformer.api import export
from edgeformer.checkpoint.convert import convert
from edgeformer.errors import ExportError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
WEB = Path(__file__).parent / "web"
OPTIMUM = os.environ.get("EDGEFORMER_OPTIMUM_PYTHON")
HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM")
NOT_IN_JS = {("albert", "TokenClassification"), ("modernbert", "QuestionAnswering")}
FAMILIES = [*ENCODERS, "xlm-roberta", "camembert"]


def run(command, cwd):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=cwd)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-2000:]
    return {line["folder"]: line for line in lines}


def all_cases(root, target):
    """Folders of every family and head under `root`, requests for them, and what transformers computes."""
    requests, expected = [], {}
    for model_type in FAMILIES:
        base = {"xlm-roberta": "roberta", "camembert": "roberta"}.get(model_type, model_type)
        for head in HEADS:
            name, ids = f"{model_type}-{head}", (random_ids(80, 17) + 10).tolist()
            labels = dict(num_labels=3) if head.endswith("Classification") else {}
            config = encoder_settings(base, next(iter(ENCODERS[base].values()))) | labels
            loaded, hf = load_tiny(root / "hf" / name, model_type, auto=f"AutoModelFor{head}", **config)
            if target == "web" and (model_type, head) in NOT_IN_JS:
                with pytest.raises(ExportError, match=r"transformers\.js has no class .*; --without-head exports"):
                    export(loaded, root / name, target=target)
                continue
            export(loaded, root / name, target=target)
            types = "token_type_ids" in [i.name for i in loaded.spec.inputs()]
            outputs = [o for o in loaded.spec.outputs() if o.endswith("logits")]
            with torch.no_grad():
                made = hf(torch.tensor([ids]))
            expected[name] = [made[o].numpy().ravel() for o in outputs]
            names = {"types": types, "outputs": outputs}
            requests.append({"folder": name, "kind": f"AutoModelFor{head}", "ids": ids, "names": names})
    (root / "requests.json").write_text(json.dumps(requests))
    return expected


def check(found, expected):
    assert not (wrong := {name: line["error"] for name, line in found.items() if "error" in line}), wrong
    for name, outputs in expected.items():
        for ours, theirs in zip(found[name]["outputs"], outputs, strict=True):
            assert np.abs(np.array(ours) - theirs).max() <= tolerances.FAMILY, name


@pytest.mark.skipif(OPTIMUM is None, reason="EDGEFORMER_OPTIMUM_PYTHON names no Python that has optimum-onnx")
def test_optimum(tmp_path):
    expected = all_cases(tmp_path, "cpu")
    found = run(
        [str(OPTIMUM), str(ROOT / "tests" / "optimum_heads.py"), str(tmp_path), str(tmp_path / "requests.json")], ROOT
    )
    check(found, expected)
    assert found["bert-TokenClassification"]["labels"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}


node = pytest.mark.skipif(
    shutil.which("node") is None or not (WEB / "node_modules" / "@huggingface").exists(),
    reason="run tests/web/install (Node, npm)",
)


@node
def test_transformers_js(tmp_path):
    expected = all_cases(tmp_path, "web")
    check(run(["node", "heads.mjs", str(tmp_path), str(tmp_path / "requests.json")], WEB), expected)


@node
def test_a_pipeline_of_transformers_js(tmp_path):
    """From text to label and score, of rxnfp's real classifier of 50 classes. Oracle: transformers on the same ids."""
    from test_real_checkpoints import package

    from edgeformer.checkpoint.companions.tokenizer import read_tokenizer

    loaded = load(convert(package("rxnfp") / "models" / "transformers" / "bert_ft_10k_25s", tmp_path / "m"))
    export(loaded, tmp_path / "w", target="web")
    text = "C C O . C C ( = O ) Cl > > C C O C ( C ) = O"
    (tmp_path / "requests.json").write_text(json.dumps([{"folder": "w", "text": text}]))
    (line,) = run(["node", "heads.mjs", str(tmp_path), str(tmp_path / "requests.json")], WEB).values()
    settings = transformers.BertConfig.from_pretrained(tmp_path / "m")
    settings.id2label = {i: f"LABEL_{i}" for i in range(50)}
    hf = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "m", config=settings).eval()
    with torch.no_grad():
        scores = hf(torch.tensor([read_tokenizer(tmp_path / "w").encode(text)])).logits[0].softmax(-1)
    best = scores.topk(3)
    assert [o["label"] for o in line["outputs"]] == [f"LABEL_{i}" for i in best.indices.tolist()]
    assert np.allclose([o["score"] for o in line["outputs"]], best.values.numpy(), atol=1e-4)
