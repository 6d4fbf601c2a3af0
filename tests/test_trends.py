"""The survey's trends, from its data and from the named specs."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from edgeformer.cli import cli
from edgeformer.report.trends import counts, page, survey


def test_the_specs_say_what_the_survey_says_but_for_its_known_errors():
    for row in survey():
        if not row["named"]:
            continue
        if row["attention"] != row["attention_survey"]:
            assert row["error"], row
        if row["ratio_survey"] and abs(row["ratio_survey"] - row["ratio"]) > 0.1:
            assert row["error"], row


def test_trends():
    """The survey's text, section 2.2: by 2024 grouped queries, gated networks, SiLU and RMSNorm are most."""
    rows = survey()
    assert counts(rows, "ffn")["2023 H1"] == {"plain": 13}  # five Pythia, five Cerebras, two LaMini, Dolly
    assert counts(rows, "attention")["2024 H2"]["GQA"] > counts(rows, "attention")["2024 H2"]["MHA"]
    assert counts(rows, "norm")["2022 H2"] == {"LayerNorm": 6}


def test_the_page(tmp_path):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    text = page()
    assert "known errors" in text.lower() and "both gate halves" in text and "http://" not in text.split("<script")[0]
    done = CliRunner().invoke(cli, ["trends", "-o", str(tmp_path / "t.html")], catch_exceptions=False)
    assert done.exit_code == 0 and (tmp_path / "t.html").read_text() == text
    assert "attention" in CliRunner().invoke(cli, ["trends"], catch_exceptions=False).output
