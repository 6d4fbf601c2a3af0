"""`edgeformer targets`: what it says is what the exports then do."""

import json

import pytest
from click.testing import CliRunner
from support import STDLIB, saved, small_spec

from edgeformer.advise.compatibility import answers
from edgeformer.api import export
from edgeformer.cli import cli
from edgeformer.errors import EdgeformerError
from edgeformer.exporters.coreai import package


def attempt(loaded, answer, precision, folder) -> bool:
    kind, _, target = answer.name.partition(" ")
    options = {"target": target} if target else {"no_tokenizer": True} if kind == "gguf" else {}
    try:
        export(loaded, folder, to=kind, precision=precision, force=True, **options)
    except EdgeformerError:
        return False
    return True


@pytest.mark.parametrize("case", ["llama", "softcap", "odd width"])
def test_answers_are_true(tmp_path, case):
    """Every precision that is promised exports; every one that is refused doesn't."""
    pytest.importorskip("gguf")
    spec = {
        "llama": small_spec(),
        "softcap": small_spec(softcap=9.0),
        "odd width": small_spec(head_dim=12, position=None),
    }[case]
    loaded, _ = saved(spec, tmp_path / "m")
    for answer in answers(loaded):
        if answer.name == "checkpoint" or (answer.name == "coreai" and package.missing() is not None):
            continue
        for precision in answer.precisions:
            assert attempt(loaded, answer, precision, tmp_path / "out"), (answer.name, precision)
        for precision in filter(None, answer.refused):
            assert not attempt(loaded, answer, precision, tmp_path / "out"), (answer.name, precision)
        if "" in answer.refused:
            assert not attempt(loaded, answer, "fp32", tmp_path / "out"), answer.name


def test_reasons_name_the_part(tmp_path):
    loaded, _ = saved(small_spec(softcap=9.0), tmp_path / "m")
    found = {a.name: a for a in answers(loaded)}
    assert "attention.softcap = 9.0 (none there)" in found["gguf"].refused[""]
    assert "24 inputs, which is not a multiple of the group size 32" in found["onnx cpu"].refused["q4"]
    assert "no transformers family can represent" in found["hf"].refused[""]
    assert any("brings its own code" in note for note in found["mlx"].notes)


def test_command():
    table = CliRunner().invoke(cli, ["targets", str(STDLIB)])
    assert table.exit_code == 0 and "onnx webgpu" in table.output
    listed = CliRunner().invoke(cli, ["targets", "smollm2-135m", "--json"])
    data = {a["name"]: a for a in json.loads(listed.output)}
    assert data["onnx cpu"]["precisions"] == ["fp32", "fp16", "bf16", "q4", "q8", "q4f16", "q8f16"]
    assert data["gguf"]["precisions"] == ["fp32", "fp16", "bf16", "q4", "q8"]
