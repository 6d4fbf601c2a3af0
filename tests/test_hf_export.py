"""`export --to hf`: transformers loads what is written, and computes the same."""

import numpy as np
import pytest
from family_cases import TINY
from support import STDLIB, hf_logits, load_tiny, random_ids, saved, small_spec

from edgeformer import load
from edgeformer.api import export
from edgeformer.errors import ExportError
from edgeformer.quantization.run import quantize
from edgeformer.spec.serialization import digest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
ROPE = {"factor": 4.0, "original_max_position_embeddings": 64}
CASES = {
    "llama": ("llama", TINY | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"}),
    "llama-llama3": (
        "llama",
        TINY
        | {
            "tie_word_embeddings": True,
            "rope_theta": 5e5,
            "rope_scaling": ROPE | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        },
    ),
    "llama-dynamic": ("llama", TINY | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "mistral": ("mistral", TINY | {"sliding_window": 24, "head_dim": 16}),
    "qwen2": ("qwen2", TINY | {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 24}),
    "qwen3": ("qwen3", TINY | {"head_dim": 16, "rope_scaling": ROPE | {"rope_type": "yarn"}}),
    "gpt2": ("gpt2", {"n_embd": 48, "n_head": 4, "n_layer": 2, "vocab_size": 97, "n_positions": 128, "n_inner": 100}),
}


@pytest.mark.parametrize("case", CASES)
def test_decoders(tmp_path, case):
    family, config = CASES[case]
    loaded, model = load_tiny(tmp_path / "m", family, **config)
    export(loaded, tmp_path / "out", to="hf")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values())
    ids = random_ids(97, 60)
    assert np.abs(hf_logits(again.eval(), ids) - hf_logits(model, ids)).max() <= 1e-6
    assert digest(load(tmp_path / "out").spec) == digest(loaded.spec)


def test_an_encoder(tmp_path):
    config = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 70}
    loaded, model = load_tiny(tmp_path / "m", "bert", vocab_size=97, max_position_embeddings=128, **config)
    export(loaded, tmp_path / "out", to="hf")
    again, info = transformers.AutoModel.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values())
    ids = torch.from_numpy(random_ids(97, 1, 40))
    with torch.no_grad():
        assert (again.eval()(ids)[0] - model(ids)[0]).abs().max() <= 1e-6


def test_a_quantized_checkpoint_is_dequantized_exactly(tmp_path):
    quantize(load(STDLIB), tmp_path / "q")
    export(load(tmp_path / "q"), tmp_path / "out", to="hf")
    weights, again = load(tmp_path / "q").require_weights(), load(tmp_path / "out").require_weights()
    assert all(np.array_equal(weights[n].astype(np.float32), again[n]) for n in weights)


def test_a_spec_of_our_own_that_is_a_llama(tmp_path):
    loaded, _ = saved(small_spec(), tmp_path / "m")
    made = export(loaded, tmp_path / "out", to="hf", precision="fp32")
    assert made.manifest["target"] == "llama"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    from edgeformer.inference.lookup import require
    from edgeformer.inference.runtime import Options

    ids = random_ids(31, 40)
    ours = require("numpy")[0].open(loaded, Options()).forward(ids[None], all_positions=True)[0]
    assert np.abs(hf_logits(model, ids) - ours).max() <= 1e-4


def test_what_no_family_says_is_refused(tmp_path):
    loaded, _ = saved(small_spec(softcap=5.0), tmp_path / "m")
    with pytest.raises(ExportError, match="no transformers family can represent") as caught:
        export(loaded, tmp_path / "out", to="hf")
    assert "the nearest is llama, which differs in blocks.*.attention.softcap = 5.0 (none there)" in str(caught.value)
    assert not (tmp_path / "out").exists()
