"""One family, several writers: checkpoints as mlx-lm, transformers' own state dict, and savers of shared tensors write them.

Oracle: transformers' logits of the model that was written.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import tolerances
from family_cases import CASES, settings
from support import hf_logits, hf_model, load_tiny, random_ids

from edgeformer.checkpoint.loading import load
from edgeformer.errors import CheckpointError
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

MLX_LM = (
    "cohere", "deepseek_v2", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "granite",
    "llama", "mixtral", "olmo2", "olmoe", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3",
    "stablelm", "starcoder2",
)  # fmt: skip
"""Families that both mlx-lm and transformers have (mlx-lm's OLMo needs a package that is gone)."""


MORE = {"gpt_neox": {"as Pythia": {"intermediate_size": 192, "tie_word_embeddings": False}}}
"""Cases that mlx-lm has a place for, where none of a family's odd ones is one."""


def with_older_keys(config):
    """The keys that mlx-lm's classes insist on, as transformers 4 wrote them."""
    rope = config.get("rope_parameters") or {}
    theta, share = rope.get("rope_theta", 10000.0), rope.get("partial_rotary_factor", 1.0)
    older = {
        "rope_theta": theta,
        "partial_rotary_factor": share,
        "rotary_emb_base": theta,
        "rotary_pct": share,
        "n_ctx": config.get("n_positions"),
        "num_experts": config.get("num_local_experts"),
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else {**rope, "type": rope["rope_type"]},
    }
    return older | config


def numpy_logits(folder, ids):
    return require("numpy")[0].open(load(folder), Options(threads=1)).forward(ids[None], all_positions=True)[0]


@pytest.mark.parametrize("model_type", MLX_LM)
def test_as_mlx_lm_writes_it(model_type, tmp_path):
    """mlx-lm loads transformers' checkpoint and saves it under its own names."""
    pytest.importorskip("mlx_lm")
    from mlx_lm.utils import load_model, save_model

    reasons = []
    for name, case in (CASES[model_type] | MORE.get(model_type, {})).items():  # mlx-lm has no place for some odd ones
        hf = hf_model(tmp_path / name, model_type, **settings(model_type, case))
        file = tmp_path / name / "config.json"
        config = file.read_text()
        file.write_text(json.dumps(with_older_keys(json.loads(config))))
        if model_type == "gpt2":  # mlx-lm reads the names that the first GPT-2 was published with
            from safetensors.numpy import load_file, save_file

            stored = load_file(tmp_path / name / "model.safetensors")
            save_file(
                {k.removeprefix("transformer."): v for k, v in stored.items()}, tmp_path / name / "model.safetensors"
            )
        try:
            model, _ = load_model(tmp_path / name, lazy=True)
            break
        except Exception as e:  # whatever mlx-lm meets
            reasons.append(f"{name}: {str(e)[:60]}")
    else:
        pytest.skip("mlx-lm can't load any of these cases: " + "; ".join(reasons))
    save_model(tmp_path / "mlx", model)
    (tmp_path / "mlx" / "config.json").write_text(config)
    ids = random_ids(97, 40)
    assert np.abs(numpy_logits(tmp_path / "mlx", ids) - hf_logits(hf, ids)).max() <= tolerances.FAMILY


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe", "deepseek_v2"])
def test_experts_as_transformers_5_holds_them(model_type, tmp_path):
    """A plain `state_dict` of transformers 5, saved by safetensors: experts are fused, names are those of the modules."""
    from safetensors.torch import save_file

    hf = hf_model(tmp_path / "hf", model_type, **settings(model_type, next(iter(CASES[model_type].values()))))
    state = {k: v.contiguous().clone() for k, v in hf.state_dict().items()}
    if not any(name.endswith("experts.gate_up_proj") for name in state):
        pytest.skip("this transformers holds experts apart")
    (tmp_path / "hf" / "model.safetensors").unlink()
    save_file(state, tmp_path / "hf" / "model.safetensors")
    ids = random_ids(97, 40)
    assert np.abs(numpy_logits(tmp_path / "hf", ids) - hf_logits(hf, ids)).max() <= tolerances.FAMILY


SHARED = {  # the names of one shared tensor -> which of them a writer may keep
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "gemma2": ("model.embed_tokens.weight", "lm_head.weight"),
}


@pytest.mark.parametrize("model_type", SHARED)
def test_a_tied_model_that_keeps_the_heads_name(model_type, tmp_path):
    """safetensors' savers keep one name of a shared tensor, and which one isn't said."""
    from safetensors.numpy import load_file, save_file

    embed, head = SHARED[model_type]
    loaded, hf = load_tiny(tmp_path / "hf", model_type, **settings(model_type, {"tie_word_embeddings": True}))
    assert "head.weight" not in loaded.weights
    state = load_file(tmp_path / "hf" / "model.safetensors")
    name = embed if embed in state else embed.removeprefix("transformer.")
    state[head] = state.pop(name)
    save_file(state, tmp_path / "hf" / "model.safetensors")
    ids = random_ids(97, 40)
    assert np.abs(numpy_logits(tmp_path / "hf", ids) - hf_logits(hf, ids)).max() <= tolerances.FAMILY


def test_a_tied_t5_under_any_of_its_names(tmp_path):
    import transformers
    from safetensors.numpy import load_file, save_file

    torch.manual_seed(0)
    sizes = dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, vocab_size=96, decoder_start_token_id=0)
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    before = load(tmp_path).weights["embed.weight"]
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        save_file({name if k == "shared.weight" else k: v for k, v in state.items()}, tmp_path / "model.safetensors")
        assert np.array_equal(load(tmp_path).weights["embed.weight"], before), name


def test_an_untied_model_without_a_head_is_refused(tmp_path):
    """Nothing stored is no sign that the table is the head: the config says whether it is."""
    from safetensors.numpy import load_file, save_file

    load_tiny(tmp_path / "hf", "llama", **settings("llama", {"tie_word_embeddings": False}))
    state = load_file(tmp_path / "hf" / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors are missing:\n    model\.lm_head\.weight|lm_head\.weight"):
        load(tmp_path / "hf")
    state["lm_head.weight"] = state.pop("model.embed_tokens.weight")  # nor is a head the table
    save_file(state, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight"):
        load(tmp_path / "hf")
