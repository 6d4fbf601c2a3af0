"""The torch back end as a thing to train: transformers' losses, whole-graph compilation, gradients, wrappers."""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from family_cases import TINY
from support import load_tiny, random_ids

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from edgeformer.api import build_torch  # noqa: E402
from edgeformer.backends.torch.module import TorchModel  # noqa: E402
from edgeformer.backends.torch.store import FixedStore  # noqa: E402
from edgeformer.checkpoint.loading import load  # noqa: E402
from edgeformer.checkpoint.saving import save  # noqa: E402
from edgeformer.ops.step import GrowingStore  # noqa: E402

GPT2 = dict(n_embd=48, n_head=6, n_layer=2, n_positions=256, vocab_size=97, initializer_range=0.1)
NO_DROPOUT = {"gpt2": dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)}
BERT = {k: v for k, v in TINY.items() if k != "num_key_value_heads"} | dict(
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1
)
CASES = {"llama": TINY | {"initializer_range": 0.1}, "gpt2": GPT2 | NO_DROPOUT["gpt2"], "bert": BERT}


def losses(model, step, batches):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    out = []
    for batch in batches:
        optimizer.zero_grad()
        loss = step(model, batch)
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    return np.array(out)


def token_loss(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("family", CASES)
def test_twenty_adamw_steps(family, tmp_path):
    loaded, hf = load_tiny(tmp_path, family, **CASES[family])
    batches = [torch.from_numpy(random_ids(97, 4, 24, seed=i % 2)) for i in range(20)]
    if family == "bert":  # no language head: regress the pooled output

        def theirs(model, ids):
            return (model(ids).pooler_output - 0.5).square().mean()

        def ours(model, ids):
            return (model(ids)["pooler_output"] - 0.5).square().mean()
    else:

        def theirs(model, ids):
            return token_loss(model(ids).logits, ids)

        def ours(model, ids):
            return token_loss(model(ids), ids)

    model = build_torch(loaded)
    reference, got = losses(hf.train(), theirs, batches), losses(model.train(), ours, batches)
    assert reference[-1] < reference[0]
    assert np.abs(got - reference).max() <= tolerances.LOSS


def test_gradients_reach_every_parameter(tmp_path):
    for family, config in CASES.items():
        loaded, _ = load_tiny(tmp_path / family, family, **config)
        model = build_torch(loaded).train()
        outputs = model(torch.from_numpy(random_ids(97, 2, 12)))
        tensors = outputs.values() if isinstance(outputs, dict) else [outputs]
        sum(t.square().sum() for t in tensors).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and p.grad.abs().sum() > 0, f"{family}: {name}"


@pytest.mark.parametrize("family", CASES)
def test_compiles_whole(family, tmp_path):
    """torch.compile(fullgraph=True) with inductor: the same outputs and the same gradients."""
    loaded, _ = load_tiny(tmp_path, family, **CASES[family])
    model = build_torch(loaded)
    ids = torch.from_numpy(random_ids(97, 2, 12))

    def run(call):
        model.zero_grad()
        out = call(ids)
        out = out["last_hidden_state"] if isinstance(out, dict) else out
        out.square().mean().backward()
        return out.detach(), [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]

    (eager, eager_grads), (compiled, grads) = run(model), run(torch.compile(model, fullgraph=True))
    assert (eager - compiled).abs().max() <= tolerances.LAYER
    assert all((a - b).abs().max() <= tolerances.LAYER for a, b in zip(eager_grads, grads, strict=True))


def test_blocks_are_modules_and_names_are_canonical(tmp_path):
    loaded, _ = load_tiny(tmp_path, "llama", **CASES["llama"])
    model = build_torch(loaded)
    assert isinstance(model.layers[1], torch.nn.Module)
    assert set(model.state_dict()) == set(loaded.weights)
    from torch.utils.checkpoint import checkpoint as recompute

    ids = torch.from_numpy(random_ids(97, 2, 12))
    model(ids).sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    for i, layer in enumerate(model.layers):
        forward = layer.forward
        model.layers[i].forward = lambda *a, f=forward: recompute(f, *a, use_reentrant=False)
    model.zero_grad()
    model(ids).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))


def test_caches_agree(tmp_path):
    loaded, _ = load_tiny(tmp_path, "llama", **CASES["llama"])
    model, ids = build_torch(loaded), torch.from_numpy(random_ids(97, 2, 10))
    with torch.no_grad():
        whole = model(ids)
        growing, fixed, rows = GrowingStore(model.ops), FixedStore(model, 2, 16), []
        for i in range(10):
            a = model(ids[:, i : i + 1], store=growing)
            growing = GrowingStore(model.ops, growing.present)
            fixed.place(torch.tensor([i]), i + 1)
            b = model(ids[:, i : i + 1], store=fixed)
            rows.append((a, b))
    for n in range(2):
        assert (torch.cat([r[n] for r in rows], 1) - whole).abs().max() <= tolerances.LAYER


def test_dropout_acts_in_training_only(tmp_path):
    loaded, _ = load_tiny(tmp_path, "gpt2", **GPT2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    model, ids = build_torch(loaded), torch.from_numpy(random_ids(97, 1, 8))
    assert torch.equal(model.eval()(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_half_precision_keeps_angles_in_float32(tmp_path):
    loaded, _ = load_tiny(tmp_path, "llama", **CASES["llama"])
    model = build_torch(loaded).to(torch.bfloat16)
    assert model.positions[0].frequencies.dtype == torch.float32
    ids = torch.from_numpy(random_ids(97, 1, 200))
    difference = (model(ids).float() - build_torch(loaded)(ids)).abs().mean()
    assert difference < 0.2  # bf16 angles would scramble distant positions


def test_fresh_initialisation_follows_the_spec(tmp_path):
    spec = load_tiny(tmp_path, "gpt2", **(GPT2 | {"n_embd": 192, "initializer_range": 0.02}))[0].spec
    state = TorchModel(spec).state_dict()
    assert abs(state["layers.0.ffn.up.weight"].std().item() - 0.02) < 1e-3
    assert abs(state["layers.0.ffn.down.weight"].std().item() - 0.02 / np.sqrt(4)) < 1e-3  # 2 blocks: 1/sqrt(2 · 2)
    assert state["layers.0.attention.q.bias"].abs().max() == 0 and (state["norm.weight"] == 1).all()


def test_trained_weights_are_saved_and_loaded(tmp_path):
    loaded, _ = load_tiny(tmp_path / "hf", "qwen3", **TINY, head_dim=16)
    model = build_torch(loaded)
    save(loaded.spec, model.state_dict(), tmp_path / "mine")
    again = build_torch(load(tmp_path / "mine"))
    ids = torch.from_numpy(random_ids(97, 1, 8))
    assert torch.equal(again(ids), model(ids))


def test_position_ids_as_transformers_takes_them(tmp_path):
    """Shifted and strided positions move the rotation, never the mask."""
    loaded, hf = load_tiny(tmp_path, "llama", **CASES["llama"])
    model, ids = build_torch(loaded), torch.from_numpy(random_ids(97, 2, 12))
    for positions in (torch.arange(12)[None] + 5, torch.arange(12)[None] * 3, torch.tensor([[0, 1, 2, 3] * 3])):
        positions = positions.expand(2, -1)
        with torch.no_grad():
            mask = torch.ones_like(ids)
            expected = hf(ids, attention_mask=mask, position_ids=positions).logits
            for given in (None, mask):
                difference = (model(ids, given, positions) - expected).abs().max()
                assert difference <= tolerances.FAMILY


def test_blocks_shard_with_fsdp(tmp_path):
    """`fully_shard` per block and at the root, one gloo process: the same loss and gradients, canonical names."""
    import torch.distributed as dist

    if not dist.is_available():
        pytest.skip("this torch has no torch.distributed")
    from torch.distributed.fsdp import fully_shard

    loaded, _ = load_tiny(tmp_path / "m", "llama", **CASES["llama"])
    ids = torch.from_numpy(random_ids(97, 2, 12))
    plain = build_torch(loaded)
    token_loss(plain(ids), ids).backward()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sharded = build_torch(loaded)
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        for block in sharded.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        token_loss(sharded(ids), ids).backward()
        expected = {n: p.grad for n, p in plain.named_parameters()}
        got = {n: p.grad.full_tensor() for n, p in sharded.named_parameters()}
        assert got.keys() == expected.keys()
        assert all((got[n] - g).abs().max() <= tolerances.LAYER for n, g in expected.items())
    finally:
        dist.destroy_process_group()
