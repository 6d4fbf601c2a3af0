"""Runtimes that are wrong on purpose, added from outside the package: each is caught by what it answers, and not ranked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support import STDLIB

WRONG = ("perturbed", "off_by_one", "head_zeroed", "rope_base", "dropped")
MODULE = '''
"""numpy, made wrong in one way."""

import dataclasses

import numpy as np

from edgeformer.runtimes import numpy as right
from edgeformer.inference.runtime import Runtime as Base


class Changed(dict):
    def __init__(self, weights, change):
        super().__init__({name: change(name, np.array(weights[name], np.float32)) for name in weights})


class Session(right.NumpySession):
    def _step(self, ids, mask, all_positions):
        logits = super()._step(ids, mask, all_positions)
        kind = self.options.variant
        if kind == "off_by_one" and ids.shape[1] == 1:  # what was written last lands one slot too early
            for key, cached in self.past.items():
                moved = cached.copy()
                moved[:, :, -2] = cached[:, :, -1]
                self.past[key] = moved
        if kind == "dropped" and mask.shape[1] > 128:
            for key, cached in self.past.items():
                kept = cached.copy()
                kept[:, :, :64] = 0
                self.past[key] = kept
        return logits


class Runtime(Base):
    opens = "checkpoint"
    packages = ("numpy",)
    variants = ("perturbed", "off_by_one", "head_zeroed", "rope_base", "dropped", "right")

    def open(self, source, options):
        rng = np.random.default_rng(0)
        spec, weights = source.spec, source.weights
        if options.variant == "perturbed":
            weights = Changed(weights, lambda n, w: w * (1 + 0.01 * rng.standard_normal(w.shape).astype(np.float32)))
        if options.variant == "head_zeroed":
            def zero(name, w):
                if name == "layers.2.attention.o.weight":
                    w[:, :32] = 0
                return w
            weights = Changed(weights, zero)
        if options.variant == "rope_base":
            spec = rebased(spec)
        return Session(dataclasses.replace(source, spec=spec, weights=weights), options)


def rebased(value):
    if dataclasses.is_dataclass(value):
        changes = {f.name: rebased(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        changes = {k: v for k, v in changes.items() if v is not getattr(value, k)}
        if hasattr(value, "theta"):
            changes["theta"] = value.theta * 1.05
        return dataclasses.replace(value, **changes) if changes else value
    if isinstance(value, tuple):
        made = tuple(rebased(v) for v in value)
        return made if any(a is not b for a, b in zip(made, value)) else value
    return value
'''


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A distribution that adds a runtime through an entry point, as third parties do."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "wrong_runtimes.py").write_text(MODULE)
    info = folder / "wrong_runtimes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-runtimes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgeformer.runtimes]\nwrong = wrong_runtimes\n")
    return folder


@pytest.fixture(scope="module")
def records(outside, tmp_path_factory):
    file = tmp_path_factory.mktemp("wrong") / "rows.jsonl"
    names = ",".join(["numpy", "wrong:right", *(f"wrong:{kind}" for kind in WRONG)])
    command = [sys.executable, "-m", "edgeformer", "bench", str(STDLIB), "--runtimes", names, "--rounds", "2"]
    command += ["--prompt", "100", "--gen", "40", "--threads", "1", "--no-roofline", "--json", str(file)]
    environment = os.environ | {"PYTHONPATH": str(outside)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # rows that fail are the command's failure
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_runtime_is_caught_and_not_ranked(records, kind):
    """The oracle is the float32 reference of the same run; the same session without the fault passes (below)."""
    mine = [r for r in records if r["runtime"] == f"wrong:{kind}"]
    assert len(mine) == 2
    for record in mine:
        assert record["status"] == "ok" and record["samples_ns"]  # it ran, and was measured
        assert record["parity_verdict"] == "fail" and record["rank"] is None


def test_the_same_runtime_without_a_fault_is_ranked(records):
    right = [r for r in records if r["runtime"] in ("wrong:right", "numpy") and not r["twin"]]
    assert len(right) == 4 and all(r["parity_verdict"] == "pass" and r["rank"] for r in right)


def test_a_dropped_cache_is_seen_only_beyond_what_it_keeps(records):
    """The checks reach as far as the row ran: this fault begins after 128 tokens, and the row had 140."""
    (checks,) = [r["parity_checks"] for r in records if r["runtime"] == "wrong:dropped" and r["n_gen"]]
    verdicts = {c["name"]: c["verdict"] for c in checks}
    assert verdicts["full"] == "pass" and verdicts["cached"] == "fail"
