"""`--host`: what is sent, what runs there, what comes back. The ssh of these tests is a program that runs the command here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support import STDLIB


@pytest.fixture
def host(tmp_path):
    """An `ssh` that goes to another home folder on this machine, and the environment to call it in."""
    programs, home = tmp_path / "bin", tmp_path / "home of mac"
    programs.mkdir()
    home.mkdir()
    log = tmp_path / "log"
    script = programs / "ssh"
    script.write_text(
        f'#!/bin/sh\necho "$1: $2" >> "{log}"\n[ "$1" = user@gone ] && exit 255\ncd "{home}" && HOME="{home}" exec sh -c "$2"\n'
    )
    script.chmod(0o755)
    edgeformer = programs / "edgeformer"
    edgeformer.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgeformer "$@"\n')
    edgeformer.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "EDGEFORMER_CACHE": str(tmp_path / "cache"),
    }
    return home, log, environment


SMALL = [
    "--runtimes",
    "numpy",
    "--prompt",
    "8",
    "--gen",
    "4",
    "--rounds",
    "2",
    "--threads",
    "1",
    "--no-roofline",
    "--no-twin",
]


def run(environment, *arguments):
    command = [sys.executable, "-m", "edgeformer", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_bench_on_another_machine(host, tmp_path):
    _, log, environment = host
    file = tmp_path / "rows.jsonl"
    done = run(environment, "bench", STDLIB, "--host", "user@mac", *SMALL, "--json", file)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) == 2 and all(r["parity_verdict"] == "pass" and r["machine_host"] == "mac" for r in records)
    assert records[0]["model_filename"].startswith(str(tmp_path / "cache" / "models"))
    assert "| numpy |" in done.stdout
    (sent,) = (f for f in (tmp_path / "cache" / "models").iterdir() if f.is_dir())  # and its mark
    assert (sent / "stdlib-5m" / "config.json").read_bytes() == (STDLIB / "config.json").read_bytes()
    assert log.read_text().count("tar xf") == 1
    again = run(environment, "bench", STDLIB, "--host", "user@mac", *SMALL, "--prompt", "8,12")
    assert again.returncode == 0 and log.read_text().count("tar xf") == 1  # it is there already
    assert "8+4" in again.stdout and "12+4" in again.stdout


def test_what_goes_wrong_there(host):
    _, _, environment = host
    for arguments, message in (
        (["--host", "user@gone"], "ssh to user@gone failed"),
        (["--host", "user@mac", "--host-command", "no-such-program"], "no-such-program was not found on user@mac"),
        (["--host", "-oProxyCommand=x"], "is not a host name"),
        (["--host", "user@mac", "--report", "-"], "an HTML report can't go to stdout"),
        (
            ["--host", "user@mac", "--runtimes", "abacus"],
            "user@mac returned no records; its messages above give the reason",
        ),
    ):
        done = run(environment, "bench", STDLIB, *SMALL, *arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "there is no runtime 'abacus'" in done.stderr
