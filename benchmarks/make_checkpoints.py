"""Makes the checkpoints that the benchmarks run on: `python benchmarks/make_checkpoints.py FOLDER [NAME...]`.

`m135`: a Llama-type model of 134.5M parameters (hidden 576, 30 layers, 9/3 heads, FFN 1536, vocabulary 49,152), random fp32
weights. `m7b`: a 7B-shaped bf16 checkpoint as a sparse file: no disk is used, every weight is 0. By name only: `moe30b`, a sparse
file in the shape of Qwen3-30B-A3B (hidden 2048, 48 layers, 32/4 heads, 128 experts of 768, 8 chosen, vocabulary 151,936); `m500`
and `m1b`, random fp32 weights in the shapes of Qwen2.5-0.5B (hidden 896, 24 layers, 14/2 heads, FFN 4864, vocabulary 151,936; 2
GB) and Llama-3.2-1B (2048, 16, 32/8, 8192, 128,256; 5 GB)."""

from __future__ import annotations

import json
import math
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeformer.checkpoint.loading import load
from edgeformer.models import llama, qwen3_moe
from edgeformer.spec import tensors
from edgeformer.weights.binding import stored_part
from edgeformer.weights.parts import Stack

SMALL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
LARGE = SMALL | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
HALF = SMALL | {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
ONE = SMALL | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
}
EXPERTS = LARGE | {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "vocab_size": 151936,
}
FAMILIES = {"llama": llama.FAMILY, "qwen3_moe": qwen3_moe.FAMILY}
TOKENIZER = Path(__file__).parent.parent / "models" / "stdlib-5m"


def stored(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The stored tensors of a config's model: Hugging Face's name, and shape."""
    family = FAMILIES[config["model_type"]]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        spec = load(folder).spec
    names = family.name_map(spec)
    for canonical, shape in tensors(spec).items():
        part = stored_part(names, canonical)
        for name in part.names() if isinstance(part, Stack) else [part.name]:
            prefix = "" if name.startswith(family.unprefixed) else family.prefixes[0]
            yield prefix + name, part.part_shape(shape) if isinstance(part, Stack) else shape


def make(folder: Path, config: dict, dtype: str, item: int, fill: bool) -> None:
    """Write config, tokenizer and one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((TOKENIZER / name).read_bytes())
    header, offset = {}, 0
    for name, shape in stored(config):
        size = math.prod(shape) * item
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        if fill:
            for name, entry in header.items():
                count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // item
                scale = 0.0 if "norm" in name else 0.02
                f.write(
                    (rng.standard_normal(count, np.float32) * scale + ("norm" in name)).astype(np.float32).tobytes()
                )
        else:
            f.truncate(8 + len(text) + offset)


MADE = {
    "m135": (SMALL, "F32", 4, True),
    "m7b": (LARGE, "BF16", 2, False),
    "moe30b": (EXPERTS, "BF16", 2, False),
    "m500": (HALF, "F32", 4, True),
    "m1b": (ONE, "F32", 4, True),
}


def main() -> None:
    """Make the named ones, m135 and m7b by default."""
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or ["m135", "m7b"]:
        config, dtype, item, fill = MADE[name]
        make(folder / name, config, dtype, item, fill=fill)
        print(folder / name)


if __name__ == "__main__":
    main()
