"""What is noise and what is a difference: the interval, ties, flags, the machine's state, energy."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from support import STDLIB

from edgeformer.checkpoint.loading import load
from edgeformer.measure import energy
from edgeformer.measure.conditions import Conditions, Watch, power, thermal
from edgeformer.measure.flags import Flag, FlagCode
from edgeformer.measure.harness import run
from edgeformer.measure.memory_groups import groups_that_fit
from edgeformer.measure.meters import rapl
from edgeformer.measure.noise import Noise, interval, of_twins, spread
from edgeformer.measure.ranking import ranks
from edgeformer.measure.row import Plan, Row, Shape
from edgeformer.measure.row_flags import row_flags
from edgeformer.measure.settings import Settings
from edgeformer.measure.timed import Round
from edgeformer.verification.verdict import PASS


def row(label: str, steps: list[float], *, again: bool = False, **facts) -> Row:
    made = Row(Plan("numpy", "m", "checkpoint", "fp32", label, again=again), Shape(8, 2), 2, verdict=PASS, facts=facts)
    made.rounds = [{"prefill_ns": [s * 3], "decode_ns": [s, s], "cpu_ns": int(s * 5), "wall_ns": None} for s in steps]
    return made


def test_the_interval_is_of_ratios_within_rounds():
    """Drift that both rows share is no difference between them."""
    drift = np.linspace(1, 3, 20)
    rng = np.random.default_rng(1)
    a, b = (list(drift * (1 + 0.01 * rng.standard_normal(20))) for _ in range(2))
    found = interval(a, b)
    assert found is not None and 0.97 < found.low <= found.ratio <= found.high < 1.03 and not found.noisy
    assert interval([1.0], [1.0]) is None


def test_the_interval_covers_the_true_ratio():
    """95 % by definition; of 200 made-up pairs at least 85 % are asked for, since medians of ten rounds are few."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        a, b = np.exp(0.1 * rng.standard_normal((2, 10)))
        found = interval(list(a * 1.2), list(b))
        hits += found.low <= 1.2 <= found.high
    assert hits >= 170


def test_ties_share_a_rank():
    rows = [
        row("a", [100, 101, 99]),
        row("b", [103, 104, 102]),
        row("c", [120, 121, 119]),
        row("d", [100, 99, 98], again=True),
    ]
    noise = Noise(1.0, 0.96, 1.04, 3)
    assert [ranks(rows, noise).get(id(r)) for r in rows] == [1, 1, 3, None]
    assert [ranks(rows, None).get(id(r)) for r in rows] == [1, 2, 3, None]
    assert noise.ties(100, 103) and not noise.ties(100, 105) and not noise.noisy
    assert Noise(1.0, 0.9, 1.02, 3).noisy and math.isclose(Noise(1.0, 0.9, 1.02, 3).width, -math.log(0.9))


def test_twins_find_each_other():
    rows = [row("a", [100, 100, 100]), row("b", [50, 50, 50]), row("a again", [110, 110, 110], again=True)]
    rows[1].plan = Plan("torch", "m", "checkpoint", "fp32", "b")
    assert math.isclose(of_twins(rows).ratio, 100 / 110)
    assert of_twins(rows[:2]) is None


def test_flags_of_a_row():
    calm = row("a", [100, 101, 100], kv="fp32")
    wild = row(
        "b",
        [100, 200, 100],
        kv="fp16",
        provider="WebGpuExecutionProvider",
        provider_flops=0.9,
        device="gpu",
        cache_device="cpu",
    )
    wild.settled = False
    assert row_flags(calm, [calm]) == []
    said = " ".join(flag.text for flag in row_flags(wild, [calm, wild]))
    for part in (
        "fallback: WebGpuExecutionProvider ran 90% of the FLOPs",
        "spread",
        "not settled",
        "KV cache in fp16, others in fp32",
    ):
        assert part in said
    busy = row("c", [100, 100], kv="fp32")
    for r in busy.rounds:
        r["cpu_ns"] = 1200  # 500 ns of wall time
    assert FlagCode.THREADS not in {flag.code for flag in row_flags(busy, [busy])}
    busy.threads = 1
    assert Flag(FlagCode.THREADS, "threads: kept 2.4 CPUs busy, 1 requested") in row_flags(busy, [busy])
    assert spread(row("d", [100])) is None


@pytest.mark.slow
def test_a_busy_machine_is_said():
    """Two processes that do nothing but compute."""
    load_them = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 2)]
    try:
        plans = [Plan("numpy", str(STDLIB), "checkpoint", "fp32", "numpy")]
        settings = Settings(prompts=(64,), gens=(32,), rounds=4, threads=1)
        made = run(plans, load(STDLIB).spec, settings, reference=None)
    finally:
        for process in load_them:
            process.kill()
            process.wait()
    (shape,) = made.shapes
    assert any(flag.text.startswith("busy: other processes kept") for flag in shape.flags)
    assert shape.noise is not None and shape.noise.rounds == 4 and len(shape.rows) == 2


def test_watching_others(monkeypatch):
    """Counters of a machine on which 5 CPU seconds were used in 2 s, 3 of them by this process, which are nobody else's."""
    from edgeformer.measure import conditions

    counters = {"perf_counter": [10.0, 12.0], "_busy": [100.0, 105.0], "_used": [50.0, 53.0], "_steal": [1.0, 1.25]}
    monkeypatch.setattr(conditions.time, "perf_counter", lambda: counters["perf_counter"].pop(0))
    for name in ("_busy", "_used", "_steal"):
        monkeypatch.setattr(conditions, name, lambda *_, name=name: counters[name].pop(0))
    watch = Watch()
    watch.start([])
    watch.stop()
    assert watch.other_cpus() == 1.0 and watch.steal == 0.25 and watch.elapsed == 2.0


def test_this_process_uses_what_it_uses():
    """The counters themselves: what a loop in this process takes, and no more than the clock allows."""
    from edgeformer.measure import conditions

    busy, used, start = conditions._busy(), conditions._used([]), time.process_time()
    while time.process_time() - start < 0.3:
        pass
    assert 0.25 < conditions._used([]) - used < 0.6
    assert conditions._busy() - busy > 0.2


def test_what_speaks_against_the_machine():
    said = Conditions(
        before={"throttled": 3, "power_source": "mains"},
        after={"throttled": 5, "power_source": "battery", "low_power_mode": True, "warning": "CPU_Speed_Limit = 80"},
        other_cpus=1.5,
        steal_s=0.5,
        elapsed_s=2.0,
    ).flags()
    assert [s.code for s in said] == ["busy", "busy", "throttled", "throttled", "power", "power", "power"]
    assert Conditions().flags() == []


def test_sensors(tmp_path):
    """Linux's files; what isn't there is None, never zero."""
    if sys.platform == "darwin":
        pytest.skip("Linux's files")
    assert thermal(tmp_path) == {"celsius": None, "throttled": None, "warning": None}
    assert power(tmp_path)["governor"] is None
    for n, text in enumerate(("45000", "71500", "broken")):
        (tmp_path / f"class/thermal/thermal_zone{n}").mkdir(parents=True)
        (tmp_path / f"class/thermal/thermal_zone{n}/temp").write_text(text)
    counts = tmp_path / "devices/system/cpu/cpu0/thermal_throttle"
    counts.mkdir(parents=True)
    (counts / "core_throttle_count").write_text("7\n")
    assert thermal(tmp_path) == {"celsius": 71.5, "throttled": 7, "warning": None}


class Clock:
    """A meter that draws 10 W at rest and counts joules that rounds add."""

    source = "made up"

    def __init__(self):
        self.extra, self.start = 0.0, time.perf_counter()

    def joules(self):
        return 10 * (time.perf_counter() - self.start) + self.extra


def test_energy_of_prefill_and_decode(monkeypatch):
    monkeypatch.setattr(energy, "IDLE_S", 0.05)
    meter = Clock()

    def prefill():
        meter.extra += 2.0
        time.sleep(0.001)
        return Round(prefill_ns=[1])

    def whole():
        meter.extra += 7.0
        time.sleep(0.001)
        return Round(prefill_ns=[1], decode_ns=[1, 1])

    found = energy.of_rounds(prefill, whole, 0.05, meter)
    assert found["energy_source"] == "made up" and abs(found["idle_w"] - 10) < 2
    assert abs(found["energy_j_prefill"] - 2) < 0.2 and abs(found["energy_j_decode"] - 5) < 0.2


def test_no_counter_is_none(monkeypatch):
    monkeypatch.setattr(energy, "find_meter", lambda: None)
    found = energy.of_rounds(lambda: Round(), lambda: Round(), 1.0)
    assert found == dict.fromkeys(("energy_source", "energy_j_prefill", "energy_j_decode", "idle_w"))


def test_rapl_counts_on_over_its_end(tmp_path):
    assert rapl.open_meter(tmp_path) is None
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text("package-0" if name.count(":") == 1 else "core")
        (tmp_path / name / "energy_uj").write_text("900000")
        (tmp_path / name / "max_energy_range_uj").write_text("1000000")
    meter = rapl.open_meter(tmp_path)
    (tmp_path / "intel-rapl:2").mkdir()
    (tmp_path / "intel-rapl:2" / "name").write_text("psys\n")  # the packages once more
    assert (
        meter is not None
        and len(meter.packages) == 2
        and len(rapl.open_meter(tmp_path).packages) == 2
        and meter.joules() == 0
    )  # cores are part of their package
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000")
    assert math.isclose(meter.joules(), 0.2)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert rapl.open_meter(tmp_path) is None


def test_rows_that_do_not_fit_into_memory_together(tmp_path):
    (tmp_path / "big").write_bytes(b"0" * 1_000_000)
    plans = [Plan("numpy", str(tmp_path / "big"), "checkpoint", "fp32", str(n)) for n in range(3)]
    rows = [
        Row(p, Shape(), 1) for p in [*plans, Plan("numpy", str(tmp_path / "big"), "checkpoint", "fp32", again=True)]
    ]
    assert groups_that_fit(rows, 10**12) == [[0, 1, 2, 3]]
    tight = groups_that_fit(rows, 800_000_000)
    assert sorted(n for group in tight for n in group) == [0, 1, 2, 3] and len(tight) > 1
    assert any(3 in group and len({0, 1, 2} & set(group)) for group in tight)  # the twin is with a twin
