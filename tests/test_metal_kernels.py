"""Our Metal kernels, by the text that MLX generates, in the emulator (metal_emulator): every kernel, dtype and shape against
float64, in four schedules; injected bugs; gradients; a whole model decoded with them.

None of this is Apple's compiler or GPU. `edgeformer mac-check` runs the same cases on a Mac.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tolerances
from family_cases import TINY
from support import load_tiny, random_ids

mx = pytest.importorskip("mlx.core")

from metal_emulator import bridge, checks, program  # noqa: E402
from metal_mutants import MUTANTS, mutated  # noqa: E402

from edgeformer.backends.mlx import metal  # noqa: E402
from edgeformer.backends.mlx.decode import DecodeSession  # noqa: E402
from edgeformer.backends.mlx.load import load_model  # noqa: E402
from edgeformer.backends.mlx.metal._kernel import FLOATS, built  # noqa: E402
from edgeformer.backends.mlx.ops import MlxOps  # noqa: E402
from edgeformer.exporters.mlx.exporter import export_mlx  # noqa: E402

if reason := program.available():
    pytest.skip(reason, allow_module_level=True)

IDS = [(name, dtype) for name in metal.names() for dtype in FLOATS]


@pytest.mark.parametrize(("name", "dtype"), IDS, ids=lambda x: str(x).removeprefix("mlx.core."))
def test_against_float64_in_every_schedule(name, dtype):
    cases = list(metal.get(name).cases(dtype))
    assert len(cases) >= 5
    for case in cases:
        found = []
        for order in checks.ORDERS:
            kernel = checks.emulated(name, order)
            found.append(case.call(kernel))
            assert kernel.launch.statistics["divergent_operations"] == 0, case.name
        assert case.error(found[0]) <= 1, case.name
        for other in found[1:]:
            assert all(mx.array_equal(a, b) for a, b in zip(found[0], other, strict=True)), (
                f"{case.name}: schedules differ"
            )


SCRIPT = """import sys
sys.path.insert(0, {tests!r})
from metal_emulator.checks import fault
print(fault({name!r}, sys.stdin.read()))"""


@pytest.mark.parametrize("key", MUTANTS, ids=lambda k: f"{k[0]}: {k[1]}")
def test_injected_bugs_are_found(key):
    """In a process of its own: a read outside a buffer ends it, at a guard page that names the buffer."""
    script = SCRIPT.format(tests=str(Path(__file__).parent), name=key[0])
    done = subprocess.run([sys.executable, "-c", script], input=mutated(key), capture_output=True, text=True)
    how = "crash" if "out-of-bounds access" in done.stderr else done.stdout.strip().lower()
    assert how in MUTANTS[key][3].split(), f"{how}: {done.stderr[-500:]}"


def test_the_gradient_is_the_bodys():
    """Through the kernel's custom gradient against MLX's own of the op-level body."""
    from edgeformer.backends.mlx.metal.add_rms_norm import body

    x, d = (mx.array(np.random.default_rng(i).standard_normal((3, 40)), mx.float32) for i in range(2))
    w, kernel = mx.ones(40) * 1.5, checks.emulated("add_rms_norm")

    def loss(function):
        def of(x, d, w):
            total, y = function(x, d, w, eps=1e-5)
            return (total * total).sum() + (y * mx.arange(40)).sum()

        return mx.grad(of, argnums=(0, 1, 2))(x, d, w)

    for ours, theirs in zip(loss(kernel), loss(body), strict=True):
        assert mx.abs(ours - theirs).max().item() <= tolerances.LAYER * mx.abs(theirs).max().item()


@pytest.mark.parametrize("case", ["llama", "qwen3", "qwen3-4bit", "softcap"])
def test_a_model_decoded_with_all_kernels(case, tmp_path):
    """Prefill and steps with every kernel, emulated, against the same model without; all of them are launched."""
    if case == "softcap":
        from dataclasses import replace

        from support import saved, small_spec

        spec = small_spec(softcap=4.0)
        loaded, _ = saved(replace(spec, norm=replace(spec.norm, eps=1e-5)), tmp_path / "m")
        vocab = 31
    else:
        width = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 24}
        loaded, _ = load_tiny(tmp_path / "hf", case.removesuffix("-4bit"), **TINY | width | {"initializer_range": 0.1})
        vocab = 97
    if case.endswith("4bit"):
        from edgeformer.checkpoint.loading import load

        export_mlx(loaded, tmp_path / "q", precision="4bit", group_size=32, dtype="fp32")
        loaded = load(tmp_path / "q")
    launched: dict[str, int] = {}
    kernels = {}
    for name in metal.names():
        kernel = checks.emulated(name)

        def launch(name=name, inner=kernel.launch, **call):
            launched[name] = launched.get(name, 0) + 1
            return inner(**call)

        kernel.launch = launch
        kernels[name] = kernel
    ids, found = random_ids(vocab, 2, 12), []
    for ops in (MlxOps(), MlxOps(kernels)):
        model = load_model(loaded.spec, loaded.weights, "fp32", ops)
        model.pack()
        decoder = DecodeSession(model, 2, 16, compiled=False)
        logits = [decoder.prefill(mx.array(ids[:, :8]), keep=0)]
        logits += [decoder.step(mx.array(ids[:, i]))[:, None] for i in range(8, 12)]
        found.append(np.array(mx.concatenate(logits, 1)))
    assert np.abs(found[0] - found[1]).max() <= tolerances.FAMILY
    layers = 2
    assert (
        launched["add_rms_norm"] == 5 * 2 * layers
    )  # per pass: before each block but the first, after each attention, at the end
    assert (
        launched["rope_pack"] == 5 * layers
        and launched["glu_gemv"] >= 4 * layers
        and launched["decode_attention"] == 5 * layers
    )


def test_what_mlx_generates():
    """The capture's format, which MLX doesn't document, and what the function it writes looks like."""
    kernel = metal.get("add_rms_norm")
    x = mx.zeros((4, 576), mx.bfloat16)
    launch = bridge.captured(
        built(type(kernel)), [x, x, x[0], 1e-5], template=[("T", x.dtype), ("WIDTH", 576)], grid=(640, 1, 1),
        threadgroup=(160, 1, 1), output_shapes=[x.shape] * 2, output_dtypes=[x.dtype] * 2,
    )  # fmt: skip
    assert launch.grid == (640, 1, 1) and launch.threadgroup == (160, 1, 1)
    assert launch.template == "bfloat16_t, 576"
    assert "const device bfloat16_t* x [[buffer(0)]]" in launch.source
    assert "const constant float& eps [[buffer(3)]]" in launch.source
    assert metal.get("add_rms_norm").source().strip() in launch.source


def test_no_gpu_no_kernels(tmp_path):
    """Without Metal, asking for kernels is refused with what to do."""
    from edgeformer.errors import RuntimeUnavailable
    from edgeformer.inference.lookup import require
    from edgeformer.inference.runtime import Options

    if mx.metal.is_available():
        pytest.skip("there is a GPU")
    loaded, _ = load_tiny(tmp_path, "llama", **TINY)
    with pytest.raises(RuntimeUnavailable, match="need Metal"):
        require("mlx:kernels")[0].open(loaded, Options(variant="kernels"))
