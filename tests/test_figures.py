"""Figures and small faults that were wrong once, by hand arithmetic: FLOPs of attention, energy, locks, digests, file modes."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support import ROOT, STDLIB, saved, small_spec

from edgeformer.checkpoint.loading import load
from edgeformer.cli import cli
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.mla import MLA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.measure import comparison, energy, journal, worker
from edgeformer.measure.timed import Round
from edgeformer.weights.costs import attention_flops, head_parameters

NORM = RMSNorm()


def decoder(*attentions, **fields):
    blocks = tuple(Block(attention=a, ffn=GLU(hidden=8), norm=NORM) for a in attentions)
    return Decoder(vocab=100, width=16, context=64, blocks=blocks, **fields)


def gqa(**fields):
    return GQA(heads=3, kv_heads=1, head_dim=8, **fields)


def brute(spec, length, new):
    """The oracle: every pair of a query and a key that the mask lets it see, one by one."""
    total = 0
    for block in spec.blocks:
        mask = block.attention.mask
        for query in range(length - new, length):
            for key in range(length):
                seen = key <= query or not mask.causal
                seen &= mask.window is None or abs(query - key) < mask.window
                seen &= mask.chunk is None or query // mask.chunk == key // mask.chunk
                total += seen * 2 * 2 * 3 * 8  # score and value: a multiply and an add for each of 3 heads' 8 channels
    return total


@pytest.mark.parametrize("new", [1, 7, 40])
def test_flops_of_attention_by_mask(new):
    masks = (
        Mask(),
        Mask(window=5),
        Mask(chunk=6),
        Mask(window=4, chunk=6),
        Mask(causal=False),
        Mask(causal=False, window=3),
    )
    spec = decoder(*(gqa(mask=mask) for mask in masks))
    assert attention_flops(spec, 40, new) == brute(spec, 40, new)


def test_flops_of_latent_attention():
    """In the latent's space: a score of rank + rope channels and a value of rank, for each of 4 heads (it was 0)."""
    mla = MLA(heads=4, nope=8, rope=4, v_dim=8, rank=12, position=Rope(dim=4), norm=NORM)
    assert attention_flops(decoder(mla, mla), 10) == 2 * 10 * 4 * 2 * (12 + 4 + 12)


def test_blocks_that_run_twice_count_twice():
    blocks = tuple(Block(attention=gqa(mask=Mask(causal=False)), ffn=GLU(hidden=8), norm=NORM) for _ in range(2))
    spec = Encoder(vocab=100, width=16, context=64, blocks=blocks)
    assert attention_flops(replace(spec, order=(0, 1, 0)), 10) == 1.5 * attention_flops(spec, 10)


def test_the_head_of_narrow_embeddings():
    """OPT-350M: 50,272 tokens of 512 channels in a model of 1024: 25.7 M weights, not 51.5 M."""
    spec = decoder(gqa(), embed_width=512)
    assert head_parameters(replace(spec, width=1024, vocab=50272)) == 50272 * 512
    assert head_parameters(spec) == 100 * 512


class Watt:
    """A meter of a machine that draws 1 W, by a clock of the test's own."""

    source = "1 W"

    def __init__(self):
        self.now = 0.0

    def joules(self):
        return self.now


@pytest.mark.parametrize("depth", [0, 32])
def test_energy_without_lead_in(depth, monkeypatch):
    """By a fake clock: a prefill of 2 s, a step of 3 s, 1 s for 32 tokens of depth; lead-ins of 50 s don't count."""
    meter, made = Watt(), worker.Worker.__new__(worker.Worker)

    def rounds(self, prompt, gen, depth=0, cold=False):
        meter.now += (
            (0 if cold else 50) + depth / 32 + gen * 3 + (2 if len(prompt[0]) - depth == 8 else len(prompt[0]) / 32)
        )
        return Round(prefill_ns=[1], decode_ns=[1] * gen)

    class Clock:
        sleep, perf_counter = (
            staticmethod(lambda s: setattr(meter, "now", meter.now + 1)),
            staticmethod(lambda: meter.now),
        )

    monkeypatch.setattr(worker.Worker, "_run", rounds)
    monkeypatch.setattr(energy, "time", Clock)
    monkeypatch.setattr(energy, "find_meter", lambda: meter)
    found = made.energy(20.0, prompt=[[1] * (depth + 8)], gen=4, depth=depth)
    assert found["energy_j_prefill"] == pytest.approx(2) and found["energy_j_decode"] == pytest.approx(12)


def test_energy_below_the_noise_is_none(monkeypatch):
    """A difference that isn't positive is no energy."""
    meter = Watt()

    def cost(joules):
        def run():
            meter.now += joules
            return Round(prefill_ns=[1], decode_ns=[1])

        return run

    class Clock:
        sleep, perf_counter = (
            staticmethod(lambda s: setattr(meter, "now", meter.now + 1)),
            staticmethod(lambda: meter.now),
        )

    monkeypatch.setattr(energy, "time", Clock)
    found = energy.of_rounds(cost(3.0), cost(2.0), 9.0, meter, fill=cost(4.0))
    assert found["energy_j_prefill"] is None and found["energy_j_decode"] is None


def test_a_journal_that_cannot_begin_lets_go_of_its_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEFORMER_CACHE", str(tmp_path))
    real = Path.write_text

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(Exception, match="No space left"):
        journal.Journal.begin("k", resume=False)
    monkeypatch.setattr(Path, "write_text", real)
    made, _ = journal.Journal.begin("k", resume=False)  # the same process takes the lock again
    made.close(finished=True)


def test_our_own_sources_are_hashed_wherever_they_lie(tmp_path, monkeypatch):
    """In a checkout below a folder called `report` or `cli`, too: another source is another digest."""
    import types

    for where in ("plain", "report/cli/measure"):
        package = tmp_path / where / "edgeformer"
        (package / "layers").mkdir(parents=True)
        (package / "measure").mkdir()
        file = package / "layers" / "x.py"
        (package / "measure" / "y.py").write_text("1")
        module = types.SimpleNamespace(__file__=str(package / "__init__.py"))
        monkeypatch.setattr(comparison.importlib, "import_module", lambda name, module=module: module)
        digests = []
        for text, other in (("1", "1"), ("2", "1"), ("2", "2")):
            file.write_text(text)
            (package / "measure" / "y.py").write_text(other)
            digests.append(comparison._makers_digest())
        assert digests[0] != digests[1] == digests[2], where


def test_saved_weights_can_be_read_by_others(tmp_path):
    """By the process's umask, as any file."""
    saved(small_spec(), tmp_path / "m")
    (tmp_path / "other").write_text("x")
    mode = stat.S_IMODE((tmp_path / "other").stat().st_mode)
    assert {stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "m").iterdir()} == {mode}


def test_a_readers_config_is_not_changed(tmp_path):
    """minicpm3's reader put its defaults into the caller's object."""
    from keys_page import public_configs

    from edgeformer.checkpoint.loading import family
    from edgeformer.models._config import HfConfig

    for kind, entries in public_configs().items():
        for entry in entries[:1]:
            data = json.loads(json.dumps({"model_type": kind, **entry["config"]}))
            before = json.dumps(data)
            try:
                family(kind).spec(HfConfig(data, kind))
            except Exception:  # refused configs are another test's
                continue
            assert json.dumps(data) == before, kind


def run(*arguments, cwd=None):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_a_dash_is_standard_output_or_refused(tmp_path, monkeypatch):
    """No command makes a file called -."""
    monkeypatch.chdir(tmp_path)
    for command in (["export", STDLIB, "-o", "-"], ["quantize", STDLIB, "-o", "-"], ["compare", STDLIB, "-o", "-"]):
        assert "can't be written to standard output" in run(*command).output
    assert "<!doctype html>" in run("trends", "-o", "-").output.lower()
    assert isinstance(run("new", "-", "--like", "qwen3-0.6b").exception, Exception)
    assert not (tmp_path / "-").exists() and not (ROOT / "-").exists()


def test_every_prompt_is_continued():
    one, two = (run("generate", STDLIB, "-p", p, "-n", "4", "--json").output for p in ("def f(", "import "))
    both = json.loads(run("generate", STDLIB, "-p", "def f(", "-p", "import ", "-n", "4", "--json").output)
    assert both == [json.loads(one), json.loads(two)]


def test_install_lines_are_whole(monkeypatch):
    """The line that installs a runtime is printed with its brackets, and not cut to a table's column."""
    from edgeformer.inference.lookup import get

    reason = 'the package openvino is not installed; pip install "edgeformer[openvino]"'
    monkeypatch.setattr(type(get("openvino")[0]), "unavailable", lambda self: reason)
    assert f"openvino: {reason}\n" in run("runtimes").output


def test_quality_of_a_plain_checkpoint(tmp_path):
    """A folder that is no artefact: the same weights differ by nothing."""
    text = STDLIB / "validation.txt"
    found = run("quality", STDLIB, "--against", STDLIB, "--text", text, "--tokens", "512", "--json")
    (_, row) = json.loads(found.output[found.output.index("[") :])
    assert row["against"]["flips"] == 0 and row["precision"] == "bf16"


def test_threads_are_the_physical_cores_by_default():
    """The same in Python as on the command line."""
    from edgeformer.inference.runtime import Options
    from edgeformer.inference.threads import physical_cores
    from edgeformer.measure.settings import Settings
    from edgeformer.verification.quality import Settings as QualitySettings

    assert Settings().threads == QualitySettings().threads == Options().threads == physical_cores()


def test_quantized_rows_slower_than_their_own_fp32_are_flagged():
    from edgeformer.measure.flags import Flag, FlagCode
    from edgeformer.measure.row import Plan, Row, Shape
    from edgeformer.measure.row_flags import row_flags

    def row(precision, prefill, decode, runtime="onnxruntime"):
        made = Row(Plan(runtime, "m", "onnx", precision, runtime), Shape(8, 2, 1, 0), 1)
        made.rounds = [{"prefill_ns": [prefill], "decode_ns": [decode, decode], "cpu_ns": 1, "wall_ns": None}] * 3
        return made

    plain = row("fp32", 100, 10)
    slow, fast, other = row("q8", 90, 140), row("q4", 150, 5), row("q8", 900, 900, "openvino")
    rows = [plain, slow, fast, other]
    slower = FlagCode.SLOWER_THAN_FP32
    assert Flag(slower, "decode 14.0 x slower than its own fp32") in row_flags(slow, rows)
    assert [f.text for f in row_flags(fast, rows) if f.code is slower] == ["prefill 1.5 x slower than its own fp32"]
    assert slower not in {f.code for f in (*row_flags(other, rows), *row_flags(plain, rows))}


def test_several_precisions_share_a_web_folder(tmp_path):
    """A second export keeps the first one's graph; another model's folder is replaced as ever."""
    from edgeformer.api import export

    for precision in ("fp32", "q4", "q8", "q4"):
        export(load(STDLIB), tmp_path / "w", target="web", precision=precision)
    names = {f.name for f in (tmp_path / "w" / "onnx").glob("*.onnx")}
    assert names == {"model.onnx", "model_q4.onnx", "model_quantized.onnx"}
    told = json.loads((tmp_path / "w" / "config.json").read_text())["transformers.js_config"]
    assert told == {"use_external_data_format": dict.fromkeys(names, 1), "dtype": "q4"}
    manifest = json.loads((tmp_path / "w" / "edgeformer.json").read_text())
    assert {o["precision"] for o in manifest["others"].values()} == {"fp32", "q8"}
    loaded, _ = saved(replace(load(STDLIB).spec, tied=True), tmp_path / "m")
    export(load(tmp_path / "m"), tmp_path / "w", target="web", precision="fp32")
    assert {f.name for f in (tmp_path / "w" / "onnx").glob("*.onnx")} == {"model.onnx"}
    assert loaded.weights is not None and np.isfinite(loaded.weights["norm.weight"]).all()


def test_targets_name_runtimes_that_take_them():
    found = {a["name"]: a["runtimes"] for a in json.loads(run("targets", STDLIB, "--json").output)}
    assert "openvino" not in found["onnx cpu"] and "openvino" in found["onnx portable"]
