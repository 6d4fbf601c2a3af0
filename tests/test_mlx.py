"""The MLX back end beyond what the suites of all back ends cover: gradients, compiled decoding, sampling, packing, memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tolerances
from family_cases import CASES, TINY, settings
from support import STDLIB, load_tiny, random_ids, run_cached, saved, small_spec
from test_training import BERT

mx = pytest.importorskip("mlx.core")
torch = pytest.importorskip("torch")

import mlx.nn as nn  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

from edgeformer.api import build_torch  # noqa: E402
from edgeformer.backends.mlx.fit import needed_bytes  # noqa: E402
from edgeformer.backends.mlx.load import load_model  # noqa: E402
from edgeformer.backends.mlx.module import MlxModel  # noqa: E402
from edgeformer.backends.mlx.ops import periods  # noqa: E402
from edgeformer.backends.mlx.sampling import sample  # noqa: E402
from edgeformer.checkpoint.loading import load  # noqa: E402
from edgeformer.checkpoint.saving import save  # noqa: E402
from edgeformer.errors import InputError  # noqa: E402
from edgeformer.inference.lookup import require  # noqa: E402
from edgeformer.inference.runtime import Options  # noqa: E402
from edgeformer.layers.rope import Rope  # noqa: E402
from edgeformer.layers.rope_llama3 import Llama3Scaling  # noqa: E402
from edgeformer.ops.sampling import Sampling, choose  # noqa: E402
from edgeformer.spec import tensors  # noqa: E402

NO_DROPOUT = {"gpt2": dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), "opt": dict(dropout=0.0)}
TRAINED = {
    **{f: (f, CASES[f][c]) for f, c in {
        "llama": "mqa-bias-gelu-linear", "mistral": "narrow-window-odd-head", "qwen2": "mixed-windows",
        "qwen3": "mixed-windows-tied", "gpt2": "plain", "gemma2": "tight-caps-types", "phi": "forty-percent-norms-groups",
        "opt": "350m-projected-norm-after", "bloom": "six-heads", "mpt": "clipped-scaled", "stablelm": "parallel-head-norms",
        "olmo2": "whole-norms", "granite": "multipliers", "cohere": "head-norms-scale", "deepseek_v2": "groups-bias-yarn",
        "mixtral": "plain", "glm4": "half-rotated", "falcon": "40b-two-norms",
    }.items()},
    "bert": ("bert", BERT),
}  # fmt: skip


def open_mlx(loaded, variant="eager", **options):
    return require("mlx")[0].open(loaded, Options(variant=variant, **options))


@pytest.mark.parametrize("family", TRAINED)
def test_gradients_against_torch(family, tmp_path):
    """Oracle: torch's autograd on the torch back end, every parameter, relative to the largest gradient."""
    model_type, config = TRAINED[family]
    config = config if family == "bert" else settings(model_type, config | NO_DROPOUT.get(family, {}))
    loaded, _ = load_tiny(tmp_path, model_type, **config)
    ids = random_ids(97, 2, 40)

    def loss(outputs):
        values = outputs.values() if isinstance(outputs, dict) else [outputs]
        return sum((v * v).sum() for v in values)

    reference = build_torch(loaded).train()
    loss(reference(torch.from_numpy(ids))).backward()
    expected = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    model = load_model(loaded.spec, loaded.weights).train()
    found = dict(tree_flatten(nn.value_and_grad(model, lambda x: loss(model(x)))(mx.array(ids))[1]))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(np.abs(gradient).max(), 1e-3 * max(np.abs(g).max() for g in expected.values()))
        assert np.abs(np.array(found[name]) - gradient).max() <= tolerances.GRADIENT * scale, name


def test_a_fresh_model_trains():
    spec = small_spec()
    mx.random.seed(0)
    model, ids = MlxModel(spec), mx.array(random_ids(31, 4, 16))
    assert {n: x.shape for n, x in tree_flatten(model.parameters())} == tensors(spec)
    import mlx.optimizers as optim

    optimizer = optim.AdamW(1e-2)
    step = nn.value_and_grad(model, lambda x: nn.losses.cross_entropy(model(x)[:, :-1], x[:, 1:], reduction="mean"))
    losses = []
    for _ in range(15):
        loss, gradients = step(ids)
        optimizer.update(model, gradients)
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("case", ["llama-yarn-relu-odd-head", "qwen3-mixed-windows-tied", "gpt2-plain"])
def test_compiled_steps_say_the_same(case, tmp_path):
    """Compiled steps over a bucket of the cache against eager steps over its filled part, beyond the first bucket."""
    model_type, _, name = case.partition("-")
    loaded, _ = load_tiny(tmp_path, model_type, **settings(model_type, CASES[model_type][name]))
    ids = random_ids(97, 2, 256)[:, :250]
    ids[:, 240:] = ids[:, 230:240]
    valid = np.ones_like(ids)
    valid[1, :9] = 0
    for mask in (None, valid):
        eager = run_cached(open_mlx(loaded, batch=2, capacity=256), ids, mask, 236)
        compiled = run_cached(open_mlx(loaded, "compile", batch=2, capacity=256), ids, mask, 236)
        assert np.abs(eager - compiled)[:, 9:].max() <= tolerances.FAMILY / 10


@pytest.mark.parametrize("count", [1, 2, 9])
def test_no_write_beyond_the_cache(count):
    """MLX doesn't check: neither prompts, nor steps, nor streams may go past the capacity."""
    session = open_mlx(load(STDLIB), capacity=32)
    with pytest.raises(InputError, match="do not fit"):
        list(session.tokens([1] * (33 - count), count + 1, Sampling()))
    with pytest.raises(InputError, match="do not fit"):
        session.decoder.prefill(mx.ones((1, 33), mx.int32))
    session.reset()
    assert len(list(session.tokens([1] * (32 - count), count, Sampling()))) == count
    assert session.length == 0  # and it begins anew


def test_frequencies_of_the_whole_prompt(tmp_path):
    """Length-dependent rotation: a prompt beyond the chunk is not rotated piece by piece. Oracle: numpy."""
    from edgeformer.layers.rope_dynamic import DynamicScaling
    from edgeformer.layers.rope_longrope import LongRopeScaling

    factors = tuple(np.linspace(1, 4, 8).tolist())
    long = LongRopeScaling(short_factor=(1.0,) * 8, long_factor=factors, original_context=600, temperature=1.1)
    for name, scaling in (("dynamic", DynamicScaling(factor=4.0, original_context=256)), ("long", long)):
        spec = replace(small_spec(position=Rope(dim=16, scaling=scaling)), context=1024)
        loaded, _ = saved(spec, tmp_path / name)
        ids = random_ids(31, 1, 700)
        expected = require("numpy")[0].open(loaded, Options()).forward(ids, all_positions=True)
        session = open_mlx(loaded, capacity=800)
        last = session.forward(ids)
        assert np.abs(last - expected[:, -1]).max() <= tolerances.FAMILY
        session.reset()
        assert np.abs(session.forward(ids, all_positions=True) - expected).max() <= tolerances.FAMILY
        assert needed_bytes(spec, 0, 1, 800, "fp32") > 1.2 * needed_bytes(
            replace(spec, blocks=small_spec().blocks), 0, 1, 800, "fp32"
        )


def test_two_generations_of_one_session():
    """The first one is told; the second is not disturbed when the first is dropped."""
    session = open_mlx(load(STDLIB), capacity=64)
    expected = list(session.tokens([5, 6, 7], 6, Sampling()))
    first = session.tokens([1, 2, 3], 6, Sampling())
    next(first)
    second = session.tokens([5, 6, 7], 6, Sampling())
    tokens = [next(second)]
    with pytest.raises(InputError, match="another generation"):
        next(first)
    assert tokens + list(second) == expected


def test_decoding_follows_training(tmp_path):
    """Weights that changed between generations: neither compiled steps nor head norms are the old ones."""
    loaded, _ = load_tiny(tmp_path, "qwen3", **TINY | {"head_dim": 16})
    for variant in ("eager", "compile"):
        session = open_mlx(loaded, variant, capacity=32)
        ids = mx.array(random_ids(97, 1, 8))
        session.forward(np.array(ids))
        attention = session.model.layers[0].attention
        attention.q_norm.weight = attention.q_norm.weight * 3
        session.model.norm.weight = session.model.norm.weight * 2
        session.reset()
        found = session.forward(np.array(ids))
        assert np.abs(found - np.array(session.model(ids))[:, -1]).max() <= tolerances.FAMILY


def test_stream_is_greedy_decoding():
    """Tokens chosen on the device, one step ahead, across the first bucket of 256: the tokens of the plain loop."""
    session = open_mlx(load(STDLIB), capacity=330)
    prompt = random_ids(session.spec.vocab, 240).tolist()
    ahead = list(session.tokens(prompt, 80, Sampling()))
    session.reset()
    plain = list(super(type(session), session).tokens(prompt, 80, Sampling()))
    assert ahead == plain


def test_a_prompt_in_chunks(monkeypatch):
    from edgeformer.backends.mlx import decode

    session = open_mlx(load(STDLIB), capacity=200)
    ids = random_ids(session.spec.vocab, 1, 150)
    whole = session.forward(ids, all_positions=True)
    monkeypatch.setattr(decode, "CHUNK", 64)
    session.reset()
    assert np.abs(session.forward(ids, all_positions=True) - whole).max() <= tolerances.REAL_WEIGHTS
    session.reset()
    assert np.abs(session.forward(ids) - whole[:, -1]).max() <= tolerances.REAL_WEIGHTS


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=5),
        Sampling(temperature=1.3, top_p=0.6),
        Sampling(temperature=1.0, min_p=0.3),
        Sampling(temperature=0.9, top_k=12, top_p=0.8, min_p=0.05),
    ],
)
def test_sampling_has_the_hosts_distribution(sampling):
    """20 000 draws on the device against as many by `ops.sampling.choose`: the same support, frequencies within 5 σ."""
    logits, count = np.random.default_rng(0).standard_normal(40).astype(np.float32) * 2, 20_000
    rows = mx.broadcast_to(mx.array(logits), (count, 40))
    ours = np.bincount(np.array(sample(rows, mx.random.key(1), sampling)), minlength=40) / count
    rng = np.random.default_rng(1)
    theirs = np.bincount([choose(logits, sampling, rng) for _ in range(count)], minlength=40) / count
    assert np.abs(ours - theirs).max() <= 5 * np.sqrt(2 * 0.25 / count)
    assert all(a > 0 for a, b in zip(ours, theirs, strict=True) if b > 0.001)
    assert all(b > 0 for a, b in zip(ours, theirs, strict=True) if a > 0.001)


def test_packing_keeps_every_bit(tmp_path):
    loaded, _ = saved(small_spec(bias=True), tmp_path)
    plain, packed = (load_model(loaded.spec, loaded.weights) for _ in range(2))
    packed.pack()
    names = {n for n, _ in tree_flatten(packed.parameters())}
    assert {"layers.0.attention.q_k_v.weight", "layers.1.ffn.gate_up.weight"} <= names
    assert not any(n.endswith(("attention.q.weight", "ffn.up.weight")) for n in names)
    size = [sum(x.nbytes for _, x in tree_flatten(m.parameters())) for m in (plain, packed)]
    assert size[0] == size[1]
    for name in ("q", "k", "v"):
        part = getattr(packed.layers[0].attention, name)
        start = sum(part.sizes[: part.index])
        rows = part.parent.weight[start : start + part.sizes[part.index]]
        assert mx.array_equal(rows, getattr(plain.layers[0].attention, name).weight)
    ids = mx.array(random_ids(31, 2, 20))
    assert mx.abs(plain(ids) - packed(ids)).max().item() <= tolerances.LAYER


def test_periods_invert_to_the_frequencies():
    """mx.fast.rope takes reciprocals: those of the plain scheme come back exactly, others within one unit."""
    plain = Rope(dim=64, theta=500_000.0).frequencies()
    assert np.array_equal(np.float32(1) / periods(plain), plain)
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
    scaled = Rope(dim=64, scaling=scaling).frequencies()
    assert np.abs(np.float32(1) / periods(scaled) / scaled - 1).max() <= 2**-23


def test_bf16_stays_bf16(tmp_path):
    """Weights and cache in bf16; logits within what eight bits of mantissa allow."""
    loaded, _ = load_tiny(tmp_path, "llama", **TINY | {"initializer_range": 0.05})
    session = open_mlx(loaded, precision="bf16", capacity=64)
    assert {x.dtype for _, x in tree_flatten(session.model.parameters())} == {mx.bfloat16}
    assert {x.dtype for x in session.decoder.store.arrays.values()} == {mx.bfloat16}
    ids = random_ids(97, 1, 40)
    expected = require("torch")[0].open(loaded, Options(capacity=64)).forward(ids, all_positions=True)
    ours = run_cached(session, ids, None, 20)
    assert np.abs(ours - expected).max() <= 2**-5 * np.abs(expected).max()


def test_what_was_trained_in_mlx_is_a_checkpoint(tmp_path):
    """Saved from MLX, in bf16 too; read by torch: the same logits."""
    spec = small_spec()
    mx.random.seed(1)
    model, ids = MlxModel(spec), random_ids(31, 1, 12)
    save(spec, model.state_dict(), tmp_path / "a")
    ours = np.array(model(mx.array(ids)))
    theirs = build_torch(load(tmp_path / "a"))(torch.from_numpy(ids)).detach().numpy()
    assert np.abs(ours - theirs).max() <= tolerances.LAYER
    half = {name: x.astype(mx.bfloat16) for name, x in model.state_dict().items()}
    save(spec, half, tmp_path / "b")
    again = load(tmp_path / "b").weights
    assert again.dtypes() == {"BF16"}
    assert all(np.array_equal(again[n].astype(np.float32), np.array(x.astype(mx.float32))) for n, x in half.items())


def test_loading_takes_no_second_copy():
    """Loaded from bf16 into float32 and packed: at most one layer beside the model itself."""
    loaded = load(STDLIB)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load_model(loaded.spec, loaded.weights, "fp32")
    model.pack()
    size = sum(x.nbytes for x in model.state_dict().values())
    assert mx.get_peak_memory() - before < 1.15 * size


@pytest.mark.parametrize("variant", ["eager", "compile"])
def test_a_step_writes_the_cache_in_place(variant, tmp_path):
    """Forty steps beside a cache of 25 MB take no second one: what nobody holds is updated where it lies."""
    loaded, _ = saved(replace(small_spec(), context=100_000), tmp_path)
    session = open_mlx(loaded, variant, capacity=100_000)
    session.forward(random_ids(31, 1, 4))
    for _ in range(3):
        session.forward(random_ids(31, 1, 1))
    size = sum(x.nbytes for x in session.decoder.store.arrays.values())
    assert size > 20_000_000
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(40):
        session.forward(random_ids(31, 1, 1))
    assert mx.get_peak_memory() - before < size / 20


def test_a_model_that_does_not_fit_is_refused(monkeypatch):
    from edgeformer.backends.mlx import fit

    monkeypatch.setattr(fit, "budget_bytes", lambda: (10_000_000, "free memory"))
    with pytest.raises(InputError, match=r"needs 0\.0\d GB .* free memory is 0\.01 GB"):
        open_mlx(load(STDLIB))
