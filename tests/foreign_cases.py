"""Linear maps as other tools quantize them, written to their published layouts by loops of their own, and whole folders of them.

Each encoder takes a path and a weight in float64, and returns the tensors to store and what their codes stand for.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors.torch import save_file
from support import hf_model

LLAMA = dict(
    hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, vocab_size=97,
    max_position_embeddings=256, initializer_range=0.2,
)  # fmt: skip
MIXTRAL = LLAMA | dict(num_local_experts=3, num_experts_per_tok=2)
RNG = np.random.default_rng(0)


def packed_words(codes, bits):
    """int32 words of codes [rows, n], the first in the lowest bits; the last word is filled up."""
    words = np.zeros((len(codes), -(-codes.shape[1] * bits // 32)), np.uint64)
    for i in range(codes.shape[1]):
        word, at = divmod(i * bits, 32)
        wide = codes[:, i].astype(np.uint64) << np.uint64(at)
        words[:, word] |= wide & np.uint64(0xFFFFFFFF)
        if at + bits > 32:
            words[:, word + 1] |= wide >> np.uint64(32)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


def grouped(weight, bits, size, *, symmetric, half=np.float16):
    """Codes, scales and zeros of a weight [outputs, inputs], and what they stand for."""
    outputs = len(weight)
    groups = weight.reshape(outputs, -1, size)
    most = (1 << bits) - 1
    if symmetric:
        scale = np.abs(groups).max(-1) * 2 / most
        zero = np.full(scale.shape, 1 << (bits - 1))
    else:
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scale = (high - low) / most
        zero = np.clip(np.rint(-low / scale), 1, most).astype(int)
    scale = scale.astype(half)
    codes = np.clip(np.rint(groups / scale[..., None].astype(np.float64)) + zero[..., None], 0, most).astype(int)
    value = scale[..., None].astype(np.float64) * (codes - zero[..., None])
    return codes.reshape(weight.shape), scale, zero, value.reshape(weight.shape)


def gptq(bits=4, size=32, *, symmetric=True, order=False, version=1, bias=False):
    def encode(path, weight):
        inputs = weight.shape[1]
        shuffled = RNG.permutation(inputs) if order else np.arange(inputs)
        codes, scale, zero, value = grouped(weight[:, shuffled], bits, size, symmetric=symmetric)
        back = np.argsort(shuffled)
        made = {
            "qweight": packed_words(codes[:, back], bits).T.contiguous(),
            "qzeros": packed_words((zero - (version == 1)).T & (1 << bits) - 1, bits),
            "scales": torch.from_numpy(scale.T.copy()),
            "g_idx": torch.from_numpy((back // size).astype(np.int32)),
        }
        if bias:
            made["bias"] = torch.zeros(len(weight), dtype=torch.float16)
        return {f"{path}.{k}": v for k, v in made.items()}, value[:, back]

    form = {1: "gptq", 2: "gptq_v2"}[version]
    return dict(
        quant_method="gptq", bits=bits, group_size=size, sym=symmetric, desc_act=order, checkpoint_format=form
    ), encode


def awq(size=32, *, symmetric=False):
    def encode(path, weight):
        codes, scale, zero, value = grouped(weight, 4, size, symmetric=symmetric)

        def words(x):
            out = np.zeros((len(x), x.shape[1] // 8), np.uint32)
            for i, n in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                out |= x[:, n::8].astype(np.uint32) << np.uint32(4 * i)
            return torch.from_numpy(out.view(np.int32).copy())

        made = {"qweight": words(codes.T), "qzeros": words(zero.T), "scales": torch.from_numpy(scale.T.copy())}
        return {f"{path}.{k}": v for k, v in made.items()}, value

    return dict(quant_method="awq", bits=4, group_size=size, zero_point=not symmetric, version="gemm"), encode


def packed(bits=4, size=32, *, symmetric=True, half=np.float16):
    """compressed-tensors' pack-quantized."""

    def encode(path, weight):
        codes, scale, zero, value = grouped(weight, bits, size, symmetric=symmetric, half=half)
        made = {
            "weight_packed": packed_words(codes, bits),
            "weight_scale": torch.from_numpy(scale.astype(half)),
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            made["weight_zero_point"] = packed_words(zero.T, bits).T.contiguous()
        return {f"{path}.{k}": v for k, v in made.items()}, value

    return dict(quant_method="compressed-tensors", format="pack-quantized"), encode


def float8(x):
    return torch.from_numpy(np.ascontiguousarray(x)).float().to(torch.float8_e4m3fn)


def fp8(how="blocks", method="fp8"):
    def encode(path, weight):
        outputs, inputs = weight.shape
        block = {"blocks": (64, 64), "rows": (1, inputs), "tensor": (outputs, inputs)}[how]
        grid = np.zeros((-(-outputs // block[0]), -(-inputs // block[1])), np.float32)
        value, codes = np.zeros(weight.shape), torch.zeros(weight.shape, dtype=torch.float8_e4m3fn)
        for i in range(grid.shape[0]):
            for j in range(grid.shape[1]):
                at = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
                grid[i, j] = np.abs(weight[at]).max() / 448
                codes[at] = float8(weight[at] / grid[i, j])
                value[at] = codes[at].double().numpy() * grid[i, j]
        name = "weight_scale_inv" if how == "blocks" else "weight_scale"
        scale = torch.from_numpy(grid if how != "tensor" else grid.reshape(()).copy())
        made = {"weight": codes, name: scale, "input_scale": torch.tensor(1.0)}
        return {f"{path}.{k}": v for k, v in made.items()}, value

    return dict(quant_method=method, **(dict(weight_block_size=[64, 64]) if how == "blocks" else {})), encode


def int8():
    """bitsandbytes' LLM.int8()."""

    def encode(path, weight):
        scb = np.abs(weight).max(1).astype(np.float32)
        codes = np.rint(weight / scb[:, None] * 127).astype(np.int8)
        made = {"weight": codes, "SCB": scb, "weight_format": np.zeros((), np.uint8)}
        value = codes.astype(np.float64) * scb[:, None] / 127
        return {f"{path}.{k}": torch.from_numpy(np.array(v)) for k, v in made.items()}, value

    return dict(quant_method="bitsandbytes", load_in_8bit=True), encode


def nf4(*, nested):
    table = np.sort(RNG.standard_normal(16)).astype(np.float32)
    table /= np.abs(table).max()

    def encode(path, weight):
        flat = weight.reshape(-1, 64)
        largest = np.abs(flat).max(-1).astype(np.float32)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
        made = {"quant_map": table}
        if nested:
            offset, steps = float(np.float32(largest.mean())), np.linspace(-1, 1, 256).astype(np.float32)
            blocks = np.resize(largest - offset, (-(-len(largest) // 256), 256))
            outer = np.abs(blocks).max(-1).astype(np.float32)
            codes = (
                np.abs((blocks / outer[:, None])[..., None] - steps)
                .argmin(-1)
                .astype(np.uint8)
                .reshape(-1)[: len(largest)]
            )
            largest = (steps[codes] * np.repeat(outer, 256)[: len(largest)] + np.float32(offset)).astype(np.float32)
            made |= {"absmax": codes, "nested_absmax": outer, "nested_quant_map": steps}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        else:
            made["absmax"] = largest
        codes = np.abs((flat / largest[:, None])[..., None] - table).argmin(-1).astype(np.uint8)
        value = (table[codes].astype(np.float64) * largest[:, None]).reshape(weight.shape)
        pairs = codes.reshape(-1, 2)
        made["quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        out = {f"{path}.weight.{k}": torch.from_numpy(np.array(v)) for k, v in made.items()}
        out[f"{path}.weight"] = torch.from_numpy((pairs[:, :1] << 4) | pairs[:, 1:])
        return out, value

    return dict(quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_use_double_quant=nested), encode


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def fp4(kind):
    """compressed-tensors' MXFP4 and NVFP4, and ModelOpt's NVFP4."""
    size = {"mxfp4": 32}.get(kind, 16)

    def encode(path, weight):
        groups = weight.reshape(len(weight), -1, size)
        largest = np.abs(groups).max(-1)
        made = {}
        if kind == "mxfp4":
            exponents = np.ceil(np.log2(largest / 6)).astype(int)
            scale = 2.0**exponents
            made["weight_scale"] = torch.from_numpy((exponents + 127).astype(np.uint8))
        else:
            overall = np.float32(448 * 6 / np.abs(weight).max())
            coded = float8(largest / 6 * overall)
            scale = (coded.float().numpy() / overall).astype(np.float64)
            made["weight_scale"] = coded
            if kind == "nvfp4":
                made["weight_global_scale"] = torch.tensor([overall])
            else:
                scale = coded.double().numpy() * np.float64(np.float32(1 / overall))
                made["weight_scale_2"] = torch.tensor(np.float32(1 / overall))
        codes = np.abs((groups / scale[..., None])[..., None] - E2M1).argmin(-1).reshape(len(weight), -1, 2)
        made["weight" if kind == "modelopt" else "weight_packed"] = torch.from_numpy(
            (codes[..., 0] | codes[..., 1] << 4).astype(np.uint8)
        )
        value = E2M1[codes.reshape(groups.shape)] * scale[..., None]
        return {f"{path}.{k}": v for k, v in made.items()}, value.reshape(weight.shape)

    if kind == "modelopt":
        return dict(quant_method="modelopt", quant_algo="NVFP4"), encode
    return dict(quant_method="compressed-tensors", format=f"{kind}-pack-quantized"), encode


CASES = {
    **{f"gptq-{bits}": (LLAMA, gptq(bits), "q4" if bits == 4 else None) for bits in (2, 3, 4, 8)},
    "gptq-v2-bias-asymmetric": (LLAMA, gptq(symmetric=False, version=2, bias=True), None),
    "gptq-order": (LLAMA, gptq(order=True), None),
    "gptq-experts": (MIXTRAL, gptq(), "q4"),
    "awq": (LLAMA, awq(), None),
    "awq-symmetric": (LLAMA, awq(symmetric=True), "q4"),
    "packed-4": (LLAMA, packed(), "q4"),
    "packed-8": (LLAMA, packed(8), None),
    "packed-4-float32-scales-asymmetric": (LLAMA, packed(symmetric=False, half=np.float32), None),
    "fp8-blocks": (LLAMA, fp8(), None),
    "fp8-tensor": (LLAMA, fp8("tensor"), None),
    "fbgemm-rows": (LLAMA, fp8("rows", "fbgemm_fp8"), None),
    "compressed-fp8-rows": (LLAMA, fp8("rows", "compressed-tensors"), None),
    "int8": (LLAMA, int8(), None),
    "nf4": (LLAMA, nf4(nested=False), None),
    "nf4-nested": (LLAMA, nf4(nested=True), None),
    "mxfp4": (LLAMA, fp4("mxfp4"), None),
    "nvfp4": (LLAMA, fp4("nvfp4"), None),
    "modelopt-nvfp4": (LLAMA, fp4("modelopt"), None),
    "modelopt-fp8": (LLAMA, (dict(quant_method="modelopt", quant_algo="FP8"), fp8("tensor")[1]), None),
}  # fmt: skip


def made(folder, config, settings, encode):
    """A folder of the encoded linear maps, and transformers' model with what they stand for."""
    model = hf_model(folder, "mixtral" if "num_local_experts" in config else "llama", **config)
    tensors, values = {}, {}
    for name, weight in weights_of(folder).items():
        path = name.removesuffix(".weight")
        if name.startswith("model.layers") and weight.ndim == 2 and not path.endswith(("gate", "norm")):
            pieces, values[name] = encode(path, weight.astype(np.float64))
            tensors |= pieces
        else:
            tensors[name] = torch.from_numpy(weight)
    (folder / "model.safetensors").unlink()
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, quantization_config=settings)
    state = model.state_dict()
    for name, value in values.items():
        set_value(state, name, torch.from_numpy(value).float())
    return model, values


def weights_of(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def set_value(state, name, value):
    """transformers 5 keeps experts stacked, gate and up as one."""
    if name in state:
        state[name].copy_(value)
        return
    head, expert, leaf = name.replace("block_sparse_moe", "mlp").removesuffix(".weight").rsplit(".", 2)
    place = state[f"{head}.{'down_proj' if leaf == 'w2' else 'gate_up_proj'}"][int(expert)]
    (place if leaf == "w2" else place[: len(value)] if leaf == "w1" else place[len(value) :]).copy_(value)


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
