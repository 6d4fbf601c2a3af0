"""T0: the spec is its own serialisation, and refuses what contradicts itself."""

from __future__ import annotations

import json

import pytest

from edgeformer import discover
from edgeformer.checkpoint.loading import load, named_specs
from edgeformer.errors import SpecError
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.mla import MLA
from edgeformer.layers.moe import MoE
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.layers.rope_yarn import YarnScaling
from edgeformer.spec import check, layers, tensors
from edgeformer.spec.serialization import digest, from_json, node_class, to_json
from edgeformer.weights.costs import costs

NORM = RMSNorm(eps=1e-5)


def decoder(**changes) -> Decoder:
    near = Block(attention=GQA(heads=4, kv_heads=2, head_dim=8, position=Rope(dim=8)), ffn=GLU(hidden=24), norm=NORM)
    scaling = YarnScaling(factor=4.0, original_context=64, temperature=1.1)
    rope = Rope(dim=8, theta=5e5, scaling=scaling)
    far = Block(
        attention=MLA(heads=4, nope=8, rope=8, v_dim=8, rank=12, position=rope, norm=NORM, mask=Mask(window=16)),
        ffn=MoE(experts=4, chosen=2, hidden=12),
        norm=NORM,
    )
    fields = dict(vocab=31, width=32, context=128, blocks=(near, near, far, near), norm=NORM)
    return Decoder(**(fields | changes))


def test_round_trip():
    spec = decoder()
    data = json.loads(json.dumps(to_json(spec)))
    assert from_json(data) == spec
    assert digest(from_json(data)) == digest(spec) != digest(decoder(tied=False))
    assert [b.get("repeat") for b in data["blocks"]] == [2, None, None], "runs of equal blocks are written once"


def test_every_layer_file_defines_its_kind():
    for name in discover.names("edgeformer.layers"):
        if name not in ("stack", "activation", "head"):  # what several kinds share
            cls = node_class(name)
            assert cls.kind == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mamba"}, "no file edgeformer/layers/mamba.py"),
        ({"colour": 3}, "unknown fields colour"),
        ({"vocab": "many"}, "decoder.vocab: 'many' is not of type"),
        ({"tied": 1}, "decoder.tied"),
        ({"blocks": []}, "needs at least one block"),
    ],
)
def test_bad_json(change, message):
    with pytest.raises(SpecError, match=message):
        from_json(to_json(decoder()) | change)


def test_missing_field():
    data = to_json(decoder())
    del data["vocab"]
    with pytest.raises(SpecError, match="missing fields vocab"):
        from_json(data)


def test_contradictions():
    with pytest.raises(SpecError, match="multiple of kv_heads"):
        GQA(heads=4, kv_heads=3, head_dim=8)
    with pytest.raises(SpecError, match="rotates 16 channels, but head_dim is only 8"):
        GQA(heads=4, kv_heads=4, head_dim=8, position=Rope(dim=16))
    with pytest.raises(SpecError, match="even and positive"):
        Rope(dim=7)
    with pytest.raises(SpecError, match="chosen must be between 1 and experts \\(4\\), got 5"):
        MoE(experts=4, chosen=5, hidden=8)


def test_names_are_attributes():
    check(decoder())
    names = list(tensors(decoder()))
    assert "layers.0.attention.q.weight" in names and "norm.weight" in names
    assert "layers.2.ffn.gate.weight" in names and not any(n.startswith("positions") for n in names)


def test_layers_walk_is_parents_first():
    paths = [path for path, _, _ in layers(decoder())]
    assert paths[0] == "" and paths.index("layers.2") < paths.index("layers.2.attention.norm")


def test_named_spec_needs_no_weights():
    loaded = load("smollm2-135m")
    assert loaded.weights is None and costs(loaded.spec).parameters == 134_515_008
    assert "smollm2-135m" in named_specs()


def test_kv_bytes_follow_the_survey():
    """2 · layers · kv heads · head dim · 2,048 tokens · 2 bytes: 45 MiB for SmolLM-135M (Lu et al. 2024, figure 10)."""
    assert round(costs(load("smollm2-135m").spec).kv_bytes_per_token * 2048 / 2**20) == 45
