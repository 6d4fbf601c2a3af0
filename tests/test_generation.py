"""Generation against transformers' own `generate`: across lengths at which rotation changes, and by generation_config.json."""

from __future__ import annotations

import json

import numpy as np
import pytest
from family_cases import TINY, rope, settings
from support import hf_model, random_ids, sessions

from edgeformer.checkpoint.companions.generation import generation_defaults
from edgeformer.checkpoint.companions.special import decoder_start, special_ids
from edgeformer.checkpoint.loading import load
from edgeformer.inference.generate import stream_ids
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.ops.sampling import Rules, Sampling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LONG = list(np.linspace(1.5, 6.0, 8))
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "factor": 4.0, "short_factor": [1.0] * 8, "long_factor": LONG,
    "original_max_position_embeddings": 64,
}  # fmt: skip
GROWING = {  # what changes when a sequence grows -> (model_type, config)
    "longrope, cache made anew": (
        "phi3",
        {"hidden_size": 96, "pad_token_id": 0, "original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
    ),
    "longrope, cache kept": ("llama", {"head_dim": 16, "rope_parameters": LONGROPE}),
    "dynamic": (
        "llama",
        {
            "head_dim": 16,
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
        },
    ),
    "yarn": ("llama", {"head_dim": 16, "rope_parameters": rope("yarn")}),
    "windows": ("mistral", {"head_dim": 16, "sliding_window": 20}),
    "windows in some layers": ("gemma2", {"head_dim": 16, "sliding_window": 20, "query_pre_attn_scalar": 16}),
}


def theirs(hf, ids, count, **options):
    """What transformers generates after the prompt."""
    given = dict(do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0, eos_token_id=None)
    asked = torch.from_numpy(ids[None])
    with torch.no_grad():
        out = hf.generate(asked, attention_mask=torch.ones_like(asked), **(given | options))
    return out[0, len(ids) :].tolist()


def close_calls(hf, ids, tokens, expected):
    """Whether transformers' own logits hold the first two different tokens for equally good (within 1e-3)."""
    at = next(i for i, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b)
    with torch.no_grad():
        logits = hf(torch.tensor([[*ids.tolist(), *expected[:at]]])).logits[0, -1]
    return abs(float(logits[tokens[at]] - logits[expected[at]])) < 1e-3


@pytest.mark.parametrize("prompt", [10, 63, 64, 65, 90])
@pytest.mark.parametrize("name", GROWING)
def test_a_growing_sequence(name, prompt, tmp_path):
    """60 tokens over the length at which something changes, from before, at and after it, in every runtime."""
    model_type, config = GROWING[name]
    hf = hf_model(tmp_path / "hf", model_type, **settings(model_type, config))
    loaded, ids = load(tmp_path / "hf"), random_ids(97, prompt, seed=prompt)
    expected = theirs(hf, ids, 60)
    for runtime, session in sessions(loaded, tmp_path).items():
        tokens = list(stream_ids(session, ids.tolist(), 60, Sampling()))
        assert tokens == expected or close_calls(hf, ids, tokens, expected), runtime


def test_logits_across_the_switch(tmp_path):
    """The steps around it, position by position: what `generate` sees."""
    model_type, config = GROWING["longrope, cache made anew"]
    hf = hf_model(tmp_path / "hf", model_type, **settings(model_type, config))
    loaded, ids = load(tmp_path / "hf"), random_ids(97, 60)
    with torch.no_grad():
        out = hf.generate(
            torch.from_numpy(ids[None]), attention_mask=torch.ones(1, 60), do_sample=False, max_new_tokens=12,
            pad_token_id=0, eos_token_id=None,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    made, expected = out.sequences[0, 60:].tolist(), torch.stack(out.logits)[:, 0].numpy()
    for runtime, session in sessions(loaded, tmp_path).items():
        session.reset()
        rows = [session.forward(ids[None])[0]]
        rows += [session.forward(np.array([[token]]))[0] for token in made[:-1]]
        assert np.abs(np.stack(rows) - expected).max() < 1e-3, runtime


def test_chunks_that_cross_the_switch_give_what_one_pass_gives(tmp_path):
    model_type, config = GROWING["longrope, cache made anew"]
    hf_model(tmp_path / "hf", model_type, **settings(model_type, config))
    ids = random_ids(97, 2, 80)
    session = require("numpy")[0].open(load(tmp_path / "hf"), Options(threads=1, batch=2))
    whole = session.forward(ids, all_positions=True)
    session.reset()
    valid = np.ones_like(ids)
    parts = [session.forward(ids[:, a:b], valid[:, a:b], all_positions=True) for a, b in ((0, 30), (30, 62), (62, 80))]
    assert np.abs(parts[2] - whole[:, 62:]).max() < 1e-4
    assert np.abs(parts[1] - whole[:, 30:62]).max() > 1e-3  # by the short factors still


RULES = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[3], [5, 7], [9, 9, 9], [2]]},
    "suppress_tokens": {"suppress_tokens": list(range(20, 60))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(48))},
    "min_length": {"min_length": 40, "eos_token_id": [2, 11]},
    "min_new_tokens": {"min_new_tokens": 20, "eos_token_id": 11},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "all at once": {
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[4, 8]], "suppress_tokens": [6],
        "min_new_tokens": 5, "eos_token_id": [2, 11],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_the_rules_of_a_generation_config(name, tmp_path):
    """Each key of generation_config.json, where the model repeats itself and ends early without it."""
    hf = hf_model(tmp_path / "hf", "llama", **settings("llama", {"head_dim": 16}))
    config = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 2} | RULES[name]
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(config))
    loaded, ids = load(tmp_path / "hf"), random_ids(97, 12, seed=3)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").float().eval()
    with torch.no_grad():
        asked = torch.from_numpy(ids[None])
        expected = hf.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=30)[0, 12:].tolist()
    defaults = generation_defaults(loaded.around)
    stop = frozenset(special_ids(loaded.around).eos)
    assert defaults.notes == []
    for runtime, session in sessions(loaded, tmp_path).items():
        tokens = list(stream_ids(session, ids.tolist(), 30, defaults.sampling, stop))
        ended = [t for i, t in enumerate(expected) if not any(e in stop for e in expected[: i + 1])]
        assert tokens == ended, runtime


def test_sampling_keeps_what_transformers_keeps(tmp_path):
    """The tokens that can be drawn, and their probabilities: against transformers' own warpers."""
    from transformers.generation import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    from edgeformer.ops.sampling import choose

    scores = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 50)).astype(np.float32) * 3)
    warped = scores
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)):
        warped = warper(None, warped)
    expected = torch.softmax(warped, -1)[0].numpy()
    sampling, rng = Sampling(0.7, 20, 0.9, 0.05), np.random.default_rng(1)
    drawn = np.bincount([choose(scores[0].numpy(), sampling, rng) for _ in range(20_000)], minlength=50) / 20_000
    assert set(np.flatnonzero(drawn)) <= set(np.flatnonzero(expected))
    assert np.abs(drawn - expected).max() < 0.02


def test_what_is_read_as_the_default(tmp_path):
    """do_sample without top_k samples from 50; without do_sample, temperatures mean nothing; what isn't done is named."""
    hf_model(tmp_path, "llama", **TINY)
    loaded = load(tmp_path)

    def defaults(**config):
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
        return generation_defaults(loaded.around)

    assert defaults(do_sample=True, temperature=0.6, top_p=0.95).sampling == Sampling(0.6, 50, 0.95)
    assert defaults(temperature=0.6, top_p=0.95).sampling == Sampling()
    assert defaults(do_sample=True, top_k=0).sampling.top_k == 0
    (note,) = defaults(num_beams=6, typical_p=0.5).notes
    assert "num_beams = 6" in note and "typical_p" not in note  # the latter belongs to sampling
    assert defaults(repetition_penalty=1.1, eos_token_id=5).sampling.rules == Rules(repetition_penalty=1.1, eos=(5,))
    (tmp_path / "generation_config.json").unlink()  # older models have it in config.json
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"no_repeat_ngram_size": 3}))
    assert generation_defaults(load(tmp_path).around).sampling.rules.no_repeat_ngram == 3


@pytest.mark.parametrize("kind", ["marian", "bart"])
def test_a_translator_writes_what_transformers_writes(kind, tmp_path):
    """Marian's forbidden padding, forced ids and repeated n-grams, by its own generation_config.json (without its beams)."""
    torch.manual_seed(0)
    sizes = dict(
        d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=90, max_position_embeddings=128, init_std=0.4,
    )  # fmt: skip
    if kind == "marian":
        ends = dict(pad_token_id=89, eos_token_id=0, decoder_start_token_id=89, forced_eos_token_id=0)
        made = transformers.MarianMTModel(transformers.MarianConfig(**sizes, **ends, decoder_vocab_size=90))
        rules = {"bad_words_ids": [[89]], **ends}
    else:
        ends = dict(
            bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_bos_token_id=0,
            forced_eos_token_id=2,
        )  # fmt: skip
        made = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **ends))
        rules = {"no_repeat_ngram_size": 3, "min_length": 8, **ends}
    with torch.no_grad():
        made.final_logits_bias[0, rules["pad_token_id"]] = 3.0  # what an untrained head wouldn't choose by itself
    made.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(rules))
    hf = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
    loaded, ids = load(tmp_path / "hf"), random_ids(80, 14, seed=5) + 5
    with torch.no_grad():
        expected = hf.generate(torch.from_numpy(ids[None]), max_new_tokens=24, num_beams=1)[0].tolist()
    defaults, stop = generation_defaults(loaded.around), frozenset(special_ids(loaded.around).eos)
    start = decoder_start(loaded.around)
    assert expected[0] == start
    session = require("torch")[0].open(loaded, Options(threads=1))
    session.source(ids[None])
    tokens = list(stream_ids(session, [start], 24, defaults.sampling, stop))
    wanted = expected[1:]
    assert tokens == (wanted[: wanted.index(next(iter(stop)))] if set(wanted) & stop else wanted)
    assert rules["pad_token_id"] not in tokens or kind == "bart"
