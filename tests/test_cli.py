"""Every command as a user runs it: text, JSON, exit codes, errors without tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support import STDLIB

import edgeformer
from edgeformer.cli import cli


def run(*arguments, code=0, **options):
    command = [sys.executable, "-m", "edgeformer", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_help_and_version():
    text = run("--help").stdout
    for name in cli.list_commands(None):
        assert f"  {name} " in text
    assert edgeformer.__version__ in run("--version").stdout


@pytest.mark.parametrize("name", cli.list_commands(None))
def test_every_command_has_help_with_an_example(name):
    text = run(name, "--help").stdout
    assert "edgeformer" in text.split("Options:")[1] and "--json" in text


def test_unknown_command_and_option():
    assert "No such command" in run("fly", code=2).stderr
    assert "No such option" in run("spec", STDLIB, "--wings", code=2).stderr


def test_export_verify_bench(tmp_path):
    out = run("export", STDLIB, "-o", tmp_path / "m")
    assert "edgeformer verify" in out.stdout
    assert run("export", STDLIB, "-o", tmp_path / "m", "--json").stdout.startswith("{")
    verdict = json.loads(
        run("verify", tmp_path / "m", "--against", STDLIB, "--length", 40, "--gen", 8, "--json").stdout
    )
    assert verdict["verdict"] == "pass"
    text = STDLIB / "validation.txt"
    assert "pass" in run("verify", tmp_path / "m", "--against", STDLIB, "--text", text, "--length", 32).stdout
    small = ("--prompt", 8, "--gen", 4, "--rounds", 1, "--threads", 1)
    run(
        "bench", tmp_path / "m", "--against", STDLIB, *small, "--runtime", "onnxruntime", "--json", tmp_path / "r.jsonl"
    )
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert [json.loads(line)["parity_verdict"] for line in lines] == ["pass", "pass"]


def test_compare(tmp_path):
    small = ("--prompt", 8, "--gen", 4, "--rounds", 1, "--threads", 1)
    out = run("compare", STDLIB, *small, "--runtime", "onnxruntime,numpy", "--precisions", "fp32,bf16", "--markdown")
    rows = [line for line in out.stdout.splitlines() if line.startswith("| ") and "pass" in line]
    assert len(rows) == 3 and rows[0].startswith("| 1 |")
    records = run("compare", STDLIB, *small, "--runtime", "onnxruntime", "--json", "-").stdout.splitlines()
    assert [json.loads(line)["runtime"] for line in records] == ["onnxruntime", "onnxruntime"]


def test_compare_at_an_accuracy_level(tmp_path):
    """Level 4 rounds activations; 0, the default of q4, doesn't."""
    small = ("--prompt", 8, "--gen", 4, "--rounds", 1, "--threads", 1, "--runtime", "onnxruntime", "--precisions", "q4")
    errors = []
    for level in (("--accuracy-level", 4), ()):
        lines = run("compare", STDLIB, *small, *level, "--json", "-").stdout.splitlines()
        errors.append(json.loads(lines[0])["parity_max_abs"])
    assert errors[0] > 1e-3 > 1e-4 > errors[1]


def test_compare_with_a_runtime_that_fails_exits_with_1(tmp_path):
    small = ("--prompt", 8, "--gen", 4, "--rounds", 1, "--limit", 0.01)
    assert "no answer" in run("compare", STDLIB, *small, "--runtime", "numpy", code=1).stdout.replace("\n", " ")


def test_a_wrong_artefact_exits_with_1(tmp_path):
    import numpy as np
    from test_runtimes import corrupt

    run("export", STDLIB, "-o", tmp_path / "m")
    corrupt(tmp_path / "m", "layers.0.attention.q.weight", lambda w: np.negative(w, out=w))
    done = run("verify", tmp_path / "m", "--against", STDLIB, "--length", 20, "--gen", 4, code=1)
    assert "do not match those of" in done.stderr and "fail" in done.stdout


def test_inspect():
    text = run("inspect", "smollm2-135m", "--memory", 0.4, "--context", 2048).stdout
    assert "blocks[0-29]: block" in text and "134,515,008" in text
    assert "does not fit in 0.4 GB" in text and "fits in 0.4 GB" in text
    data = json.loads(run("inspect", STDLIB, "--json").stdout)
    assert data["parameters"] == 5_278_976 and data["stored"] == ["BF16"] and data["task"] == "text-generation"


def test_spec_is_a_model(tmp_path):
    (tmp_path / "spec.json").write_text(run("spec", STDLIB).stdout)
    data = json.loads(run("inspect", tmp_path / "spec.json", "--json").stdout)
    assert data["spec_digest"] == json.loads(run("inspect", STDLIB, "--json").stdout)["spec_digest"]


def test_generate(tmp_path):
    greedy = run("generate", STDLIB, "-p", "import ", "-n", 12).stdout
    assert greedy.startswith("import ") and len(greedy) > 15
    assert run("generate", STDLIB, "-p", "import ", "-n", 12, "--runtime", "numpy").stdout == greedy
    data = json.loads(run("generate", STDLIB, "-p", "import ", "-n", 12, "--json").stdout)
    assert "import " + data["text"] == greedy.rstrip("\n")
    sampled = [run("generate", STDLIB, "-p", "x", "-n", 9, "--temperature", 1, "--seed", s).stdout for s in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    ids = ",".join(map(str, data["prompt_ids"]))
    assert run("generate", STDLIB, "--ids", ids, "-n", 12).stdout.strip() == ",".join(map(str, data["ids"]))


def test_generate_allocates_what_it_needs(monkeypatch):
    """Not the model's whole context."""
    from click.testing import CliRunner

    from edgeformer.cli import cli
    from edgeformer.runtimes import numpy as runtime

    seen = []
    real = runtime.Runtime.open
    monkeypatch.setattr(runtime.Runtime, "open", lambda self, s, o: seen.append(o.capacity) or real(self, s, o))
    done = CliRunner().invoke(cli, ["generate", str(STDLIB), "--ids", "5,6,7", "-n", "4", "--runtime", "numpy"])
    assert done.exit_code == 0 and seen == [7]


def test_the_null_runtime_needs_no_weights():
    out = run("bench", "smollm2-135m", "--runtime", "null", "--rounds", 1, "--gen", 2).stdout
    assert "not a model" in out and "failed" not in out


def test_runtimes():
    data = json.loads(run("runtimes", "--json").stdout)
    assert {r["runtime"] for r in data["runtimes"]} >= {"onnxruntime", "torch", "numpy", "ort_genai", "null"}
    assert "native library" in run("runtimes").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nothing-here"), "neither a folder"),
        (("inspect", STDLIB, "--context", 5000), "exceeds the model's 1024 positions"),
        (("export", "smollm2-135m", "-o", "/tmp/never"), "an architecture without weights"),
        (("export", STDLIB, "-o", "/proc/never/m"), "can't write /proc/never/m"),
        (("verify", "/tmp/nothing-here", "--against", STDLIB), "does not exist"),
        (("bench", STDLIB, "--runtime", "abacus"), "there is no runtime 'abacus'"),
        (("bench", STDLIB, "--prompt", 2000), "exceed the 1024 positions of"),
        (("generate", STDLIB), "give a prompt with -p"),
        (("generate", STDLIB, "--ids", "1,x"), "--ids takes comma-separated integers"),
        (("generate", STDLIB, "--ids", "1,9999"), "outside the vocabulary"),
        (("generate", STDLIB, "-p", "x", "--top-p", 3), "top_p must lie in"),
        (("generate", STDLIB, "-p", "x", "-n", 2000), "exceed the 1024 positions"),
        (("generate", STDLIB, "-p", "x", "--temperature", 1, "--top-p", 0), "top_p must lie in"),
        (("bench", STDLIB, "--runtime", "onnxruntime"), "it opens an ONNX artefact, this is a checkpoint"),
        (("compare", STDLIB, "--json", "/no/such/folder/x.jsonl"), "can't write records to"),
        (("compare", STDLIB, "--runtime", ","), "--runtimes is empty"),
        (("compare", STDLIB, "--prompt", 5000), "exceed the 1024 positions of"),
        (("compare", STDLIB, "--precisions", ","), "--precisions is empty"),
        (("export", STDLIB, "-o", STDLIB, "--force"), "would replace the model itself"),
    ],
)
def test_errors(arguments, message):
    done = run(*arguments, code=2)
    assert done.stderr.splitlines()[-1].startswith("error: ") and message in done.stderr and done.stdout == ""


def test_broken_companion_files(tmp_path):
    import shutil

    shutil.copytree(STDLIB, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text("[1]")
    assert "holds no JSON object" in run("export", tmp_path / "m", "-o", tmp_path / "o", code=2).stderr
    (tmp_path / "m" / "generation_config.json").unlink()
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    assert "tokenizer.json is not JSON" in run("generate", tmp_path / "m", "-p", "x", code=2).stderr
    (tmp_path / "text").write_bytes(b"\xff\xfe\xfd")
    run("export", STDLIB, "-o", tmp_path / "a")
    assert (
        "is not UTF-8" in run("verify", tmp_path / "a", "--against", STDLIB, "--text", tmp_path / "text", code=2).stderr
    )
    assert (
        "opens a checkpoint" in run("verify", tmp_path / "a", "--against", STDLIB, "--runtime", "numpy", code=2).stderr
    )


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    import os
    import signal
    import time

    command = [sys.executable, "-m", "edgeformer", "bench", str(STDLIB), "--runtime", "numpy", "--rounds", "10000"]
    command += ["--prompt", "4", "--gen", "2", "--threads", "1", "--json", str(tmp_path / "rows.jsonl")]
    # a shell's background jobs, and what they start, ignore SIGINT
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    for line in process.stderr:
        if line.startswith("round 3/"):
            break
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err and "numpy" in out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows[0]["parity_verdict"] == "pass" and len(rows[0]["samples_ns"]) >= 2


def test_output_that_nobody_reads_to_the_end():
    command = f"{sys.executable} -m edgeformer spec {STDLIB} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "{\n" and "Traceback" not in done.stderr
