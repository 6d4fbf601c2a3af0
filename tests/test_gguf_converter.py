"""Files that llama.cpp's own converter wrote: every key is known, and the model is the original's.

Oracle: transformers in float32 on the folder that was converted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from encoder_cases import encoder_settings, pair_settings
from gguf_cases import EXACT_GELU, FAMILIES
from support import hf_logits, load_tiny, random_ids

from edgeformer import load
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options

HERE = Path(__file__).parent
LLAMA_CPP = HERE / "peer_files" / "llama.cpp"
pytestmark = pytest.mark.skipif(not LLAMA_CPP.exists(), reason="run tests/peers (llama_cpp's sources)")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")
ENCODERS = ("bert", "roberta", "xlm_roberta", "distilbert", "modernbert")
"""Not camembert, whose positions the converter takes for BERT's."""
SIZES = {
    "phi": dict(num_key_value_heads=6, intermediate_size=384),  # the converter says so, whatever the config
    "stablelm": dict(qk_layernorm=False),
    "glm": dict(rms_norm_eps=1e-5),  # it looks for another key
}
SAID = {
    "gpt2": {"n_ctx": 256},
    "mpt": {"architectures": ["MPTForCausalLM"]},
    "modernbert": {"layer_norm_eps": 1e-5},
}
"""Keys of public configs that transformers doesn't write any more, and the converter needs."""
T5 = {"flan": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)}


def converted(folder: Path, family: str = "") -> Path:
    """The GGUF file of a folder."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | SAID.get(family, {})))
    if family == "gemma3_text":  # it reads the vocabulary's size there
        (folder / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": {f"t{i}": i for i in range(97)}}, "added_tokens": []})
        )
    file = folder.parent / "converted.gguf"
    command = [sys.executable, str(HERE / "gguf_converter.py"), str(LLAMA_CPP), str(folder), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_LOCAL_GGUF": ""})
    assert file.exists(), done.stderr[-2000:]
    return file


def numpy_session(model):
    return require("numpy")[0].open(model, Options())


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt_neox"])  # it wants a key that transformers 5 drops
def test_a_decoder(family, tmp_path):
    _, hf = load_tiny(tmp_path / "hf", family, **FAMILIES[family][1] | SIZES.get(family, {}))
    ids = random_ids(97, 60)
    again = load(converted(tmp_path / "hf", family))
    worst = np.abs(numpy_session(again).forward(ids[None], all_positions=True)[0] - hf_logits(hf, ids)).max()
    assert worst <= (5e-3 if family in EXACT_GELU else 1e-4), again.notes


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder(family, tmp_path):
    base = "roberta" if family == "xlm_roberta" else family
    name = family.replace("xlm_", "xlm-")
    _, hf = load_tiny(tmp_path / "hf", name, auto="AutoModel", **encoder_settings(base, {}))
    ids = random_ids(80, 1, 40) + 10
    again = load(converted(tmp_path / "hf", family))
    mask = np.ones_like(ids)
    found = numpy_session(again).encode({"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * 0})
    with torch.no_grad():
        expected = hf(input_ids=torch.from_numpy(ids)).last_hidden_state.numpy()
    assert np.abs(found["last_hidden_state"] - expected).max() <= 5e-3  # of the exact GELU


@pytest.mark.parametrize("case", T5)
def test_an_encoder_decoder(case, tmp_path):
    config = pair_settings("t5", T5[case] | dict(decoder_start_token_id=0, num_decoder_layers=2))
    _, hf = load_tiny(tmp_path / "hf", "t5", auto="AutoModelForSeq2SeqLM", **config)
    read, ids = random_ids(97, 1, 50), random_ids(97, 1, 20, seed=1)
    with torch.no_grad():
        expected = hf(input_ids=torch.from_numpy(read), decoder_input_ids=torch.from_numpy(ids)).logits.numpy()
    session = numpy_session(load(converted(tmp_path / "hf")))
    session.source(read)
    assert np.abs(session.forward(ids, all_positions=True) - expected).max() <= 1e-4 + 1e-5 * np.abs(expected).max()


def test_a_folder_of_ours(tmp_path):
    """`--to hf` is a transformers folder to llama.cpp's converter as well."""
    from edgeformer.api import export

    loaded, hf = load_tiny(tmp_path / "hf", "qwen3", **FAMILIES["qwen3"][1])
    export(loaded, tmp_path / "ours", to="hf")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "qwen3"
    ids = random_ids(97, 60)
    again = load(converted(tmp_path / "ours"))
    assert np.abs(numpy_session(again).forward(ids[None], all_positions=True)[0] - hf_logits(hf, ids)).max() <= 1e-4
