"""The report: its rows, its other formats, and the page in a real browser, where a filter is clicked."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys

import pytest
from test_records import LLAMA_BENCH, made

from edgeformer.errors import InputError, RuntimeUnavailable
from edgeformer.measure.reading import read_records
from edgeformer.measure.record import write_jsonl
from edgeformer.report.formats import markdown, table_csv, write_report
from edgeformer.report.frame import roofs, rows
from edgeformer.report.page import write_html

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def several() -> list[dict]:
    """Two models, three runtimes, two machines, a tie, a failed row, a twin."""
    found = []
    for model, cpu in (("small", "A chip"), ("large", "Another chip")):
        for n, (runtime, factor) in enumerate(
            (("onnxruntime", 1.0), ("llama_cpp", 1.01), ("torch", 2.0), ("torch", 2.0))
        ):
            for record in copy.deepcopy(made()[:2]):
                record |= {
                    "model": model,
                    "cpu_info": cpu,
                    "runtime": runtime,
                    "label": runtime,
                    "run_id": f"run {model}",
                }
                record["round_medians_ns"] = [ns * factor for ns in record["round_medians_ns"]]
                record |= {"rank": (1, 1, 3, None)[n], "twin": n == 3, "precision": ("fp32", "q4", "fp32", "fp32")[n]}
                record |= {"noise_low": 0.98, "noise_high": 1.02, "quality_kl_mean": (0.0, 0.01, 0.0, 0.0)[n]}
                record["blocks"] = {"blocks": {"attention": 0.5, "ffn": 0.5, "norm": 0.0, "head": 0.0, "other": 0.0}}
                found.append(record)
    broken = copy.deepcopy(made()[2])
    broken |= {"model": "small", "cpu_info": "A chip", "label": "<b>broken</b>", "run_id": "run small"}
    broken |= {"error": "</script><script>document.title = 'injected'</script> <!--<script> x", "rank": None}
    return [*found, broken]


def test_rows_are_both_tests_of_a_row():
    found = rows(several())
    assert len(found) == 9 and [r["records"] for r in found[:2]] == [[0, 1], [2, 3]]
    first, second, third = found[:3]
    assert first["tie"] and second["tie"] and not third["tie"] and first["ranked"] and not found[3]["ranked"]
    assert first["prefill_ts"] == 12800.0 and first["decode_ts"] == pytest.approx(750.0)
    assert (first["decode_low"], first["decode_high"]) == (500.0, 1000.0)
    assert first["machine"] == "A chip, 2 threads" and first["shape"] == "128+64" and found[3]["twin"]
    assert len(first["points"]) == 2 and first["points"][1]["fraction"] == made()[1]["roofline_frac"]
    lines = roofs(several())
    assert {r["machine"] for r in lines} == {"A chip, 2 threads", "Another chip, 2 threads"}
    assert max(r["gflops"] for r in lines if "fp32" in r["roof"]) == 100.0
    assert max(r["gflops"] for r in lines if "int8" in r["roof"]) == 400.0


def test_half_a_noise_interval_is_none():
    """A damaged record has one of its two ends."""
    records = several()[:2]
    assert "run twice" in markdown(records)
    for record in records:
        record |= {"noise_low": 0.98, "noise_high": None}
    assert "run twice" not in markdown(records)


def test_files_of_other_tools_stand_beside_ours(tmp_path):
    records = [*several(), *read_records(LLAMA_BENCH / "2026.jsonl"), *read_records(LLAMA_BENCH / "2023-09.csv")]
    shown = rows(records)
    theirs = [r for r in shown if r["suite"] == "llama-bench"]
    assert [r["shape"] for r in theirs] == ["pp128", "tg64", "pp512", "tg128"] and not any(r["ranked"] for r in theirs)
    text = markdown(records)
    assert "## small on A chip, 2 threads" in text and "## large on Another chip, 2 threads" in text and "1=" in text
    assert "the same row run twice differs by a factor of 0.980-1.020 (95 %)" in text
    lines = table_csv(records).splitlines()
    assert len(lines) == 1 + len([r for r in shown if not r["twin"]]) and lines[0].startswith("model,runtime,precision")


def test_llama_bench_sweeps_stay_apart(tmp_path):
    """Rows that differ in a setting are rows; prompt and generation in one test are neither prefill nor decode."""
    (line, _) = (LLAMA_BENCH / "2026.jsonl").read_text().splitlines()
    row = json.loads(line)
    both = [{**row, "n_gpu_layers": 0}, {**row, "n_gpu_layers": 99}, {**row, "flash_attn": 1}, {**row, "n_gen": 64}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in both))
    found = rows(read_records(tmp_path / "a.jsonl"))
    assert [r["shape"] for r in found] == ["pp128", "pp128", "pp128", "pp128+tg64"]
    assert found[3]["decode_ts"] is None and "prompt and generation together" in found[3]["flags"][0]
    csv = rows(read_records(LLAMA_BENCH / "2026.csv"))[0]
    assert (csv["prefill_low"], csv["prefill_high"]) == pytest.approx((6863.1 - 140.34152, 6863.1 + 140.34152))


def test_the_command(tmp_path):
    write_jsonl(several(), tmp_path / "a.jsonl")
    command = [sys.executable, "-m", "edgeformer", "report", str(tmp_path / "a.jsonl")]
    done = subprocess.run([*command, str(LLAMA_BENCH / "2024-03.csv")], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("## small on") and "Q4_0" in done.stdout
    twice = [*command, str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "-o", str(tmp_path / "all.jsonl")]
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "b.jsonl")  # the same run, sent twice
    subprocess.run(twice, capture_output=True, text=True, check=True)
    assert (tmp_path / "all.jsonl").read_text() == (tmp_path / "a.jsonl").read_text()
    for arguments, message in (
        (["-o", "x.pdf"], "end it in .html, .htm, .md, .csv, .jsonl"),
        (["-o", "/no/such/folder/x.html"], "can't write /no/such/folder/x.html"),
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(RuntimeUnavailable, match=r'pip install "edgeformer\[report\]"'):
        write_html(made(), tmp_path / "x.html")
    with pytest.raises(InputError, match="no report format"):
        write_report(made(), tmp_path / "x", format="pdf")
    assert not list(tmp_path.iterdir())


def test_the_page_loads_nothing(tmp_path):
    write_html(several(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["']|url\(|@import""", markup)
    data = page[page.index('id="data">') + 10 : page.index("</script>", page.index('id="data">'))]
    assert (
        "<" not in data and "injected" in data and "%DATA%" not in page
    )  # text of others neither ends nor opens anything


PROBE = """
<script>
addEventListener("load", () => setTimeout(async () => {
  const told = { title: document.title, heading: document.querySelector("h1").textContent };
  const count = () => document.querySelectorAll("#table tbody tr").length;
  const wait = () => new Promise((done) => setTimeout(done, 400));
  const marks = () => document.querySelectorAll("#decode .mark-rect path").length;
  told.figures = [...document.querySelectorAll(".figure")].filter((f) => f.querySelector("svg")).map((f) => f.id);
  told.rows = count(); told.marks = marks();
  document.querySelector('[data-filter=runtime][data-value=torch]').click(); await wait();
  told.torch = count(); told.torch_marks = marks();
  told.names = [...document.querySelectorAll("#table tbody tr td:nth-child(2)")].map((c) => c.textContent);
  document.querySelector('[data-filter=model][data-value=large]').click(); await wait();
  told.torch_large = count();
  document.querySelector('[data-filter=runtime][data-value=torch]').click(); await wait();
  told.large = count();
  const column = document.querySelector("[data-column=decode_ts]");
  const speeds = () => [...document.querySelectorAll("#table tbody tr")].map((r) => r.children[column.cellIndex].textContent);
  document.querySelector("[data-column=decode_ts]").click(); await wait(); told.down = speeds();
  document.querySelector("[data-column=decode_ts]").click(); await wait(); told.up = speeds();
  document.querySelector("#table tbody tr").click();
  told.record = document.querySelector("#record pre").textContent; told.open = document.querySelector("#record").open;
  document.querySelector("#record").close();
  const before = getComputedStyle(document.body).backgroundColor;
  document.querySelector("#theme").click(); await wait();
  told.theme = [before, getComputedStyle(document.body).backgroundColor];
  told.wide = document.documentElement.scrollWidth <= innerWidth;
  told.bold = document.querySelectorAll("td b, th b").length;
  document.body.innerHTML = ""; document.body.dataset.told = JSON.stringify(told);
}, 1500));
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="run tests/web/install (Chromium)")
@pytest.mark.parametrize("size", ["1280,1000", "500,900"])
def test_in_a_browser(tmp_path, size):
    """A filter is clicked and the table and the figures follow; columns sort; a row opens its records; nothing is injected."""
    write_html(several(), tmp_path / "report.html", title="two & <three>")
    page = (tmp_path / "report.html").read_text()
    start, _, end = page.rpartition("</body>")
    (tmp_path / "probe.html").write_text(f"{start}{PROBE}</body>{end}")
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={size}",
        "--virtual-time-budget=20000",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-told="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-1000:]
    told = json.loads(found[1].replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert told["title"] == "edgeformer · two & <three>" and told["heading"] == "two & <three>" and told["bold"] == 0
    assert set(told["figures"]) == {"decode", "prefill", "context", "pareto", "roofline", "blocks"}
    assert told["rows"] == 7 and told["marks"] == 6  # twins are not shown; the broken row has no bar
    assert told["torch"] == 3 and told["names"].count("torch") == 3 and told["torch_marks"] == 2
    assert told["torch_large"] == 1 and told["large"] == 3
    assert (
        told["down"] == sorted(told["up"], key=lambda s: -float(s.replace(",", "")))
        and told["down"] == told["up"][::-1]
    )
    assert told["open"] and json.loads(told["record"])[0]["model"] == "large"
    assert told["theme"][0] != told["theme"][1] and told["wide"]
