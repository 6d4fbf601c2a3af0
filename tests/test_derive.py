"""New specs from named ones, and what targets say to their sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from support import small_spec

from edgeformer.advise.advice import advise
from edgeformer.checkpoint.loading import load
from edgeformer.cli import cli
from edgeformer.errors import InputError
from edgeformer.layers.glu import GLU
from edgeformer.layers.rope import Rope
from edgeformer.spec import Sizes
from edgeformer.spec.derive import derive
from edgeformer.spec.serialization import from_json, to_json


def test_nothing_asked_changes_nothing():
    for name in ("qwen3-0.6b", "gemma-3-1b", "opt-350m", "bloom-560m", "openelm-270m", "minicpm3-4b"):
        spec = load(name).spec
        assert derive(spec, Sizes()) == spec


def test_a_width_takes_heads_and_network_along():
    spec = derive(load("smollm2-135m").spec, Sizes(width=384))
    block = spec.blocks[0]
    assert (spec.width, block.attention.heads, block.attention.kv_heads, block.attention.head_dim) == (384, 6, 2, 64)
    assert block.ffn.hidden == 1024
    gemma = derive(load("gemma-3-270m").spec, Sizes(width=512)).blocks[0]  # heads are not as wide as the model there
    assert gemma.attention.heads == 4 and gemma.ffn.hidden == 1664


def test_more_layers_go_on_with_the_pattern():
    spec = load("gemma-3-1b").spec  # five windowed layers, one full
    longer = derive(spec, Sizes(layers=40)).blocks
    windows = [b.attention.mask.window for b in longer]
    assert windows == ([512] * 5 + [None]) * 6 + [512] * 4
    assert derive(spec, Sizes(layers=4)).blocks == spec.blocks[:4]


def test_positions_follow():
    bloom = derive(load("bloom-560m").spec, Sizes(heads=8, head_dim=128))
    assert bloom.blocks[0].attention.position.heads == 8
    gpt2 = derive(load("gpt2").spec, Sizes(context=300, vocab=1000))
    assert gpt2.positions.count == gpt2.context == 300 and gpt2.vocab == 1000
    pythia = derive(load("pythia-160m").spec, Sizes(head_dim=32))
    assert pythia.blocks[0].attention.position.dim == 8  # a quarter, as before


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("smollm2-135m", Sizes(width=100), "heads would be"),
        ("smollm2-135m", Sizes(heads=7), "kv_heads would be"),
        ("gpt2", Sizes(rope_theta=1e4), "--rope-theta"),
        ("minicpm3-4b", Sizes(heads=8), "mla"),
    ],
)
def test_what_does_not_divide_is_refused(name, sizes, words):
    with pytest.raises(InputError, match=words):
        derive(load(name).spec, sizes)


def test_new_writes_a_spec_that_can_be_trained(tmp_path):
    torch = pytest.importorskip("torch")
    import edgeformer

    sizes = ["--layers", "2", "--width", "128", "--vocab", "64", "--context", "32"]
    command = ["new", str(tmp_path / "mine"), "--like", "qwen3-0.6b", "--heads", "4", "--kv-heads", "2", *sizes]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert "written" in done.output and "mlx" in done.output
    model = edgeformer.build_torch(edgeformer.load(tmp_path / "mine.json").spec)
    assert model(torch.zeros(1, 5, dtype=torch.int64)).shape == (1, 5, 64)
    again = CliRunner().invoke(cli, command)
    assert again.exit_code == 1 and "--force" in str(again.exception)
    forced = json.loads(CliRunner().invoke(cli, [*command, "--force", "--json"]).output)
    assert forced["parameters"] == sum(p.numel() for p in model.parameters())
    assert from_json(json.loads((tmp_path / "mine.json").read_text())) == model.layer


def test_remarks():
    """A spec made to have every fault; oracle: the facts that each file states."""
    bad = small_spec(heads=66, kv_heads=2, head_dim=12, position=None, softcap=5.0)
    bad = replace(bad, vocab=4097, width=100, tied=False, context=100_000)
    bad = replace(bad, blocks=tuple(replace(b, ffn=GLU(hidden=50)) for b in bad.blocks) * 30)
    found = {(r.target.split()[0], r.text) for r in advise(bad)}
    for target, words in {
        "everywhere": ["not a multiple of 64", "KV cache of a full context"],
        "mlx": ["head_dim 12", "33 query heads", "softcap", "multiples of 512", "60 layers"],
        "onnxruntime": ["divisible by 8"],
        "q4": ["can't be split into groups"],
        "llama.cpp": ["no architecture of llama.cpp"],
    }.items():
        for word in words:
            assert any(t == target and word in text for t, text in found), (target, word, found)


def test_remarks_on_a_vocabulary():
    found = [r.text for r in advise(replace(small_spec(heads=2, kv_heads=2), vocab=8192, tied=False))]
    for words in ("takes 49% of all", "is not tied", "has its own KV head"):
        assert any(words in text for text in found), (words, found)


def test_a_good_shape_has_few_remarks():
    good = small_spec(heads=8, kv_heads=2, head_dim=64, position=Rope(dim=64))
    good = replace(good, width=512, vocab=2048, blocks=tuple(replace(b, ffn=GLU(hidden=1536)) for b in good.blocks) * 4)
    assert {r.target.split()[0] for r in advise(good)} <= {"llama.cpp", "onnxruntime"}, advise(good)


def test_a_spec_file_reads_back(tmp_path):
    spec = derive(load("gemma-3-270m").spec, Sizes(layers=3))
    assert from_json(json.loads(json.dumps(to_json(spec)))) == spec


def test_costs_of_blocks_that_run_more_than_once():
    from component_cases import ENCODERS

    from edgeformer.spec.inspection import tree
    from edgeformer.weights.costs import costs

    once = ENCODERS["shared-blocks"]
    thrice = replace(once, blocks=once.blocks * 3, order=None)
    assert costs(once).flops_per_token == costs(thrice).flops_per_token
    assert costs(once).parameters < costs(thrice).parameters and "order=0,0,0" in tree(once)[0]


def test_sizes_that_a_model_has_not_are_refused():
    from component_cases import ENCODERS

    encoder = next(iter(ENCODERS.values()))
    with pytest.raises(InputError, match="--tied can't be given"):
        derive(encoder, Sizes(tied=True))
