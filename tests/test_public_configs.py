"""The configs of well-known public checkpoints: every one is read, or refused for a reason that is written down here."""

from __future__ import annotations

import pytest
from keys_page import page, public_configs, read
from support import ROOT

REFUSED = {  # (family, name) -> what the refusal names: networks that aren't modelled
    ("bert", "jinaai/jina-embeddings-v2-small-en"): "position_embedding_type = 'alibi'",
    ("falcon", "tiiuae/falcon-rw-1b"): "alibi = True",
    ("gemma3_text", "google/embeddinggemma-300m"): "use_bidirectional_attention",
    ("gpt2", "stanford-crfm/alias-gpt2-small-x21"): "scale_attn_by_inverse_layer_idx",
    ("gpt2", "bigcode/santacoder"): "attention_head_type",
    ("minicpm", "openbmb/MiniCPM4-0.5B"): "mup_denominator",
    ("minicpm", "openbmb/MiniCPM-Embedding (minicpm)"): "is_causal",
    ("mpt", "mosaicml/mpt-7b-storywriter"): "alibi_bias_max",
    ("mpt", "replit/replit-code-v1_5-3b"): "grouped_query_attention",
    ("qwen2", "Alibaba-NLP/gte-Qwen2-1.5B-instruct"): "is_causal",
}
UNKNOWN_FAMILIES = ("mbart", "pegasus")
CASES = [(kind, entry) for kind, entries in public_configs().items() for entry in entries]


@pytest.mark.parametrize(
    ("kind", "entry"), CASES, ids=[f"{kind}-{entry['name']}-{i}" for i, (kind, entry) in enumerate(CASES)]
)
def test_a_public_config(kind, entry):
    _, reason = read(kind, entry)
    expected = f"model_type '{kind}' is not known" if kind in UNKNOWN_FAMILIES else REFUSED.get((kind, entry["name"]))
    if expected is None:
        assert reason is None
    else:
        assert reason is not None and expected in reason


def test_the_page_says_the_same():
    assert (ROOT / "docs" / "config-keys.md").read_text(encoding="utf-8") == page(), (
        "python tests/keys_page.py docs/config-keys.md makes it anew"
    )
