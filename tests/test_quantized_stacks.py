"""Experts and latent attention's maps per head in q4 and q8: the same codes in every format, the same logits in every runtime.

Oracle: our numpy back end on the dequantized bits; the codes are the quantized checkpoint's.
"""

from __future__ import annotations

from importlib.util import find_spec

import gguf_cases
import numpy as np
import onnx
import pytest
from mlx_cases import STOCK
from support import load_tiny, random_ids

from edgeformer import load
from edgeformer.api import export
from edgeformer.errors import CheckpointError
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options
from edgeformer.quantization.run import quantize
from edgeformer.spec import Stacked, leaves
from edgeformer.weights.formats import QUANTIZED, QuantizedTensor, dequantize
from edgeformer.weights.formats import quantize as rounded
from edgeformer.weights.scales import by_channel

pytest.importorskip("transformers")
FAMILIES = {
    **{family: gguf_cases.FAMILIES[family][1] for family in ("mixtral", "qwen3_moe", "olmoe")},
    "minicpm3": gguf_cases.FORMULAS["minicpm3"][1],
    "deepseek_v2": STOCK["deepseek_v2"],
}
LIMIT = 1e-3  # of logits of about 10, as the issue of a runtime's arithmetic on the same bits


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """(family, format) -> the quantized checkpoint, 40 ids, and the logits of its dequantized bits; made once each."""
    made = {}

    def of(family, format):
        if (family, format) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{format}")
            loaded, _ = load_tiny(folder / "hf", family, **FAMILIES[family])
            done = quantize(loaded, folder / "q", format=format, method="rtn")
            model, ids = load(folder / "q"), random_ids(97, 40)
            made[family, format] = done, model, ids, logits("numpy", model, ids)
        return made[family, format]

    return of


def logits(runtime, model, ids):
    """Of a prompt, then one token at a time."""
    found, variant = require(runtime)
    session = found.open(model, Options(capacity=len(ids), variant=variant))
    first = session.forward(ids[None, :30], all_positions=True)[0]
    return np.concatenate([first, *(session.forward(ids[None, i : i + 1]) for i in range(30, len(ids)))])


def stacks(spec):
    return [f"{path}.weight" for path, leaf in leaves(spec) if isinstance(leaf, Stacked)]


def codes(model, names):
    """Codes and scales by canonical name."""
    found = {n: model.require_weights().sources[n].stored for n in names}
    assert all(isinstance(stored, QuantizedTensor) for stored in found.values())
    return {n: stored.quantized() for n, stored in found.items()}


@pytest.mark.parametrize("format", ["q4", "q8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bits_everywhere(family, format, quantized, tmp_path):
    done, model, ids, expected = quantized(family, format)
    names = stacks(model.spec)
    assert names and done.bits_per_weight <= {"q4": 5.1, "q8": 9.0}[format]  # small models have many norms
    original = codes(model, names)
    export(model, tmp_path / "onnx")
    for file in ("onnx", *(["gguf"] if find_spec("gguf") else [])):
        if file == "gguf":
            export(model, tmp_path / "gguf", to="gguf", no_tokenizer=True)
        # llama.cpp stores minicpm3's k and v maps as one
        kept = [n for n in names if file == "onnx" or ".ffn." in n or family != "minicpm3"]
        again = codes(load(tmp_path / file), kept)
        for name in kept:
            assert all(np.array_equal(a, b) for a, b in zip(original[name], again[name], strict=True)), (file, name)
    for runtime in ("torch", "mlx", "native:exact"):
        if get(runtime)[0].unavailable() is None:
            assert np.abs(logits(runtime, model, ids) - expected).max() <= LIMIT, runtime
    if get("onnxruntime:kernels")[0].unavailable() is None:
        export(model, tmp_path / "exact", accuracy_level=0)
        assert np.abs(logits("onnxruntime:kernels", tmp_path / "exact", ids) - expected).max() <= LIMIT
    for target in ("cpu", "portable", "webgpu", *(["web"] if family == "qwen3_moe" else [])):
        made = export_onnx(model, tmp_path / target, target=target, accuracy_level=0)
        assert np.abs(logits("onnxruntime", tmp_path / target, ids) - expected).max() <= LIMIT, target
        assert made.manifest["quantization"]["bits_per_weight"] == done.bits_per_weight


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v2"])
def test_quantized_mlx_folders(family, quantized, tmp_path):
    """Experts keep their codes in mlx-lm's own types and in folders of edgeformer's module."""
    pytest.importorskip("mlx_lm")
    _, model, ids, expected = quantized(family, "q4")
    experts = [n for n in stacks(model.spec) if ".ffn." in n]
    for stock in (True, False):
        folder = tmp_path / str(stock)
        export(model, folder, to="mlx", stock=stock, dtype="fp32")
        if stock:  # its tensors are MLX's: scale * code - 8 * scale
            again = load(folder).require_weights()
            for name in experts:
                assert again.sources[name].stored.dtype == "AFFINE4G32"
                assert np.abs(again[name] - model.require_weights()[name]).max() <= 1e-6
        assert np.abs(logits("mlx_lm", folder, ids) - expected).max() <= LIMIT


def test_a_layer_of_experts_is_one_node(quantized, tmp_path):
    """QMoE for SwiGLU on the target cpu, a Loop elsewhere; neither grows with the number of experts."""
    sizes = {}
    for count in (4, 16):
        loaded, _ = load_tiny(tmp_path / f"hf{count}", "mixtral", **STOCK["mixtral"] | dict(num_local_experts=count))
        for target in ("cpu", "webgpu"):
            export_onnx(loaded, tmp_path / f"{target}{count}", target=target, precision="q4", accuracy_level=0)
            model = onnx.load(tmp_path / f"{target}{count}" / "model.onnx", load_external_data=False)
            bodies = {f.name: f for f in model.functions if f.name.startswith("MoE")}
            assert len(bodies) == 1
            (body,) = bodies.values()
            kinds = [n.op_type for n in body.node]
            assert ("QMoE" in kinds, "Loop" in kinds) == (target == "cpu", target != "cpu")
            sizes.setdefault(target, set()).add(len(kinds))
    assert all(len(found) == 1 for found in sizes.values())


@pytest.mark.parametrize("act, level", [("gelu", None), ("silu", 0)])
def test_experts_that_qmoe_does_not_compute(act, level, tmp_path):
    """Other activations, and 8-bit weights without rounding, run as a Loop."""
    loaded, _ = load_tiny(tmp_path / "hf", "mixtral", **STOCK["mixtral"] | dict(hidden_act=act))
    export_onnx(loaded, tmp_path / "o", precision="q8" if level == 0 else "q4", accuracy_level=level)
    ids = random_ids(97, 40)
    expected = logits("numpy", load(tmp_path / "o"), ids)
    assert np.abs(logits("onnxruntime", tmp_path / "o", ids) - expected).max() <= LIMIT


def test_experts_in_half_precision_and_rounded(quantized, tmp_path):
    """Activations in fp16, and rounded to int8 (level 4): close to the exact ones, and not equal to them."""
    _, model, ids, expected = quantized("mixtral", "q4")
    cases = [("half", "onnxruntime", dict(precision="q4f16")), ("level", "onnxruntime", dict(accuracy_level=4))]
    if get("onnxruntime:kernels")[0].unavailable() is None:
        cases.append(("kernels", "onnxruntime:kernels", dict(accuracy_level=4)))
    for name, runtime, options in cases:
        export_onnx(model, tmp_path / name, **options)
        error = np.abs(logits(runtime, tmp_path / name, ids) - expected)
        assert 1e-6 < np.median(error) <= 0.05 * expected.std(), name  # a few tokens choose other experts


def test_experts_can_be_left_unquantized(tmp_path):
    loaded, _ = load_tiny(tmp_path / "hf", "mixtral", **STOCK["mixtral"])
    quantize(loaded, tmp_path / "q", method="rtn", keep=["*.ffn.down.weight"])
    weights = load(tmp_path / "q").require_weights()
    assert not isinstance(weights.sources["layers.0.ffn.down.weight"].stored, QuantizedTensor)
    assert isinstance(weights.sources["layers.0.ffn.up.weight"].stored, QuantizedTensor)


def test_experts_that_do_not_divide_are_refused_by_name(tmp_path):
    loaded, _ = load_tiny(tmp_path / "hf", "mixtral", **STOCK["mixtral"] | dict(intermediate_size=80))
    with pytest.raises(CheckpointError, match=r"layers\.0\.ffn\.down\.weight has 80 inputs.*--keep"):
        quantize(loaded, tmp_path / "q", method="rtn")


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v2"])
def test_calibrated_methods_see_each_map_of_a_stack(family, tmp_path):
    """Second moments are those of the inputs that reach each map, and GPTQ's own objective is better than plain rounding's with
    the same scales. Oracle: the definition, with inputs caught by hand."""
    torch = pytest.importorskip("torch")
    from edgeformer.quantization.calibration import Calibration
    from edgeformer.quantization.methods.gptq import gptq
    from edgeformer.runtimes.torch import build_torch

    loaded, _ = load_tiny(tmp_path / "hf", family, **FAMILIES[family])
    ids = random_ids(97, 4, 200)
    whole, caught = build_torch(loaded), {}
    for name in ("ffn.up", "ffn.down", *(["attention.v_up"] if family == "deepseek_v2" else [])):
        whole.get_submodule(f"layers.1.{name}").observer = lambda e, x, name=name: caught.setdefault(
            (name, e), []
        ).append(x)
    with torch.no_grad():
        whole(torch.from_numpy(ids))
    calibration = Calibration(loaded, ids)
    blocks = calibration.blocks()
    next(blocks)
    _, block = next(blocks)
    assert calibration.model.layers[0].ffn.down.weight.device.type == "meta"  # one block at a time
    found = calibration.second_moments(block, ["ffn.gate", "ffn.up", "ffn.down", *{n for n, _ in caught}])
    assert found["ffn.gate"] is found["ffn.up"]
    weights = loaded.require_weights()
    for (name, e), inputs in caught.items():
        rows = torch.cat(inputs).double()
        expected = rows.T @ rows / len(rows)
        assert (found[name][e] - expected).abs().max() <= 1e-4 * expected.abs().max(), (name, e)
        weight = np.asarray(weights[f"layers.1.{name}.weight"])[e]
        codes = gptq(weight, found[name][e], QUANTIZED["q4"], name)
        plain = rounded(weight, QUANTIZED["q4"], by_channel(found[name][e].diagonal().numpy()))
        losses = [
            np.einsum("ok,kj,oj->", *(d := dequantize(*c, QUANTIZED["q4"]) - weight, expected.numpy(), d))
            for c in (codes, plain)
        ]
        assert losses[0] < losses[1], (name, e)


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v2"])
def test_calibrated_methods_quantize_stacks(family, method, tmp_path):
    """The whole run, resumed from nothing: closer to the original on its text than rounding to nearest."""
    pytest.importorskip("torch")
    loaded, _ = load_tiny(tmp_path / "hf", family, **FAMILIES[family])
    ids = random_ids(97, 8, 128)
    expected = logits("numpy", loaded, ids[0, :40])
    errors = {}
    for name in ("rtn", method):
        done = quantize(loaded, tmp_path / name, method=name, ids=None if name == "rtn" else ids)
        assert done.manifest["quantization"]["kept"] == []
        errors[name] = np.abs(logits("numpy", load(tmp_path / name), ids[0, :40]) - expected).mean()
    assert errors[method] < errors["rtn"]
