"""`edgeformer convert`: pickled checkpoints as safetensors. The oracle is what torch saved."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from family_cases import settings
from support import hf_logits, hf_model, random_ids

from edgeformer.checkpoint.convert import convert
from edgeformer.checkpoint.loading import load
from edgeformer.errors import CheckpointError
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def pickled(folder, model, *, legacy=False):
    """A folder with its weights as pytorch_model.bin in the place of safetensors."""
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    (folder / "README.md").write_text("what it is")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_decoder(model_type, legacy, tmp_path):
    """Tied weights under both names, GPT-2's boolean buffers: every tensor bit for bit, and transformers' logits."""
    from safetensors.torch import load_file

    hf = hf_model(tmp_path / "hf", model_type, **settings(model_type, {"tie_word_embeddings": True}))
    pickled(tmp_path / "hf", hf, legacy=legacy)
    with pytest.raises(CheckpointError, match=r"Convert it once: edgeformer convert .*hf -o "):
        load(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert state.keys() == hf.state_dict().keys()
    assert all(torch.equal(state[k], v) and state[k].dtype == v.dtype for k, v in hf.state_dict().items())
    assert (tmp_path / "out" / "README.md").exists() and not list((tmp_path / "out").glob("*.bin"))
    ids = random_ids(97, 30)
    session = require("numpy")[0].open(load(tmp_path / "out"), Options(threads=1))
    assert np.abs(session.forward(ids[None], all_positions=True)[0] - hf_logits(hf, ids)).max() < 1e-4


def test_bert_keeps_its_head_and_pooler(tmp_path):
    """What AutoModelForCausalLM would have dropped, or made at random."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=60
    )
    hf = transformers.BertForPreTraining(config)
    hf.save_pretrained(tmp_path / "hf")
    pickled(tmp_path / "hf", hf)
    spec = load(convert(tmp_path / "hf", tmp_path / "out")).spec
    assert spec.pooler and spec.mlm is not None


def test_shards_bf16_and_wrapped_state(tmp_path):
    state = {f"layer.{i}": torch.randn(5, 7).bfloat16() for i in range(3)}
    (tmp_path / "m").mkdir()
    names = {}
    for i, (name, tensor) in enumerate(state.items()):
        torch.save({name: tensor}, tmp_path / "m" / f"pytorch_model-{i}.bin")
        names[name] = f"pytorch_model-{i}.bin"
    import json

    (tmp_path / "m" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    from safetensors.torch import load_file

    found = load_file(convert(tmp_path / "m", tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(found[k], v) for k, v in state.items())
    torch.save({"state_dict": state}, tmp_path / "one.ckpt")
    found = load_file(convert(tmp_path / "one.ckpt", tmp_path / "out2") / "model.safetensors")
    assert all(torch.equal(found[k], v) for k, v in state.items())
    (tmp_path / "m" / "pytorch_model-1.bin").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 shards are missing: pytorch_model-1\.bin"):
        convert(tmp_path / "m", tmp_path / "out3")


def test_no_code_runs(tmp_path):
    """A pickle that would write a file is refused, and nothing is written."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    (tmp_path / "m").mkdir()
    for name, data in (("zip", {"w": Bomb()}), ("bare", Bomb())):
        file = tmp_path / "m" / "pytorch_model.bin"
        if name == "zip":
            torch.save(data, file)
        else:
            file.write_bytes(pickle.dumps(data))
        with pytest.raises(CheckpointError, match="weights-only loader"):
            convert(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "boom").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [[1, 2], {}, {"epoch": 3, "w": torch.zeros(2)}, torch.zeros(3)], ids=str)
def test_what_is_no_state_dict(data, tmp_path):
    torch.save(data, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no state dict|no plain state dict"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="nothing to convert"):
        (tmp_path / "empty").mkdir()
        convert(tmp_path / "empty", tmp_path / "out")
