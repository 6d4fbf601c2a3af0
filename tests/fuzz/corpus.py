"""Small models and results in every format that is read, sound, for the fuzzer to damage."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
STDLIB = ROOT / "models" / "stdlib-5m"
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


@dataclass(frozen=True)
class Seed:
    """A folder, the files in it that are damaged, and commands with it as `{}`; `{o}` is the output, `{m}` the sound model."""

    name: str
    folder: Path
    files: tuple[str, ...]
    commands: tuple[str, ...]


_READ = (
    "inspect {}",
    "spec {}",
    "targets {} --json",
    "advise {}",
    "generate {} -p hello -n 3",
    "generate {} --ids 5,6 -n 2",
)
_EXPORTS = ("export {} -o {o}", "export {} -o {o} --weights link", "export {} --to hf -o {o}", "quantize {} -o {o}")
_MORE = (
    "export {} --to gguf -o {o}",
    "export {} --to mlx -o {o}",
    "convert {} -o {o}",
    "generate {} --chat -p hi -n 2",
    "launches {}",
)


def build(folder: Path) -> list[Seed]:
    """The corpus, below a folder."""
    model = _model(folder / "m")
    seeds = [
        Seed("config", model, ("config.json",), (*_READ, *_EXPORTS, *_MORE)),
        Seed("safetensors", model, ("model.safetensors",), ("inspect {}", "generate {} --ids 5,6 -n 2", *_EXPORTS)),
        Seed("tokenizer", model, ("tokenizer.json", "tokenizer_config.json"), ("generate {} -p hello -n 2", "export {} -o {o}", *_MORE)),
        Seed("companions", model, ("generation_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json"),
             ("generate {} -p hello -n 2", "generate {} --chat -p hi -n 2", "export {} -o {o}", "export {} --to gguf -o {o}")),
    ]  # fmt: skip
    seeds.append(
        Seed(
            "spec",
            _spec(model, folder / "s"),
            ("spec.json",),
            (*_READ[:4], "export {} -o {o}", "new {o} --like {}/spec.json"),
        )
    )
    seeds.append(Seed("adapter", _adapter(folder / "a"), ("adapter_config.json", "adapter_model.safetensors"),
                      ("inspect {m}+{}", "generate {m}+{} --ids 5,6 -n 2", "export {m}+{} -o {o}", "inspect {}")))  # fmt: skip
    _edgeformer("export", model, "-o", folder / "x")
    seeds.append(
        Seed(
            "onnx",
            folder / "x",
            ("model.onnx",),
            ("verify {} --against {m} --length 8 --gen 2", "generate {} --ids 5,6 -n 2", "inspect {}"),
        )
    )
    seeds.append(Seed("manifest", folder / "x", ("edgeformer.json",), ("verify {} --against {m} --length 8 --gen 2", "generate {} --ids 5,6 -n 2",
                      "inspect {}", "export {m} -o {} ", "quality {} --against {m} --text {m}/../text.txt --tokens 16 --window 8")))  # fmt: skip
    _edgeformer("export", model, "-o", folder / "l", "--weights", "link")
    seeds.append(
        Seed(
            "linked",
            folder / "l",
            ("edgeformer.json", "model.onnx"),
            ("verify {} --against {m} --length 8 --gen 2", "inspect {}"),
        )
    )
    _edgeformer("quantize", model, "-o", folder / "q")
    seeds.append(Seed("quantized", folder / "q", ("edgeformer.json", "model.safetensors", "spec.json"),
                      ("inspect {}", "verify {} --against {m} --length 8 --gen 2", "export {} -o {o}", "generate {} --ids 5 -n 2")))  # fmt: skip
    _edgeformer("export", model, "--to", "gguf", "-o", folder / "g")
    seeds.append(Seed("gguf", folder / "g", ("model.gguf",), ("inspect {}/model.gguf", "generate {}/model.gguf -p hello -n 2", "export {}/model.gguf -o {o}",
                      "export {}/model.gguf --to hf -o {o}")))  # fmt: skip
    _edgeformer("export", model, "--to", "mlx", "-o", folder / "n")
    seeds.append(
        Seed(
            "mlx",
            folder / "n",
            ("config.json", "model.safetensors", "edgeformer.json"),
            ("inspect {}", "generate {} --ids 5 -n 2", "export {} -o {o}"),
        )
    )
    results = folder / "r"
    results.mkdir()
    _edgeformer(
        "bench",
        folder / "x",
        "--rounds",
        "2",
        "--prompt",
        "4",
        "--gen",
        "2",
        "--json",
        results / "rows.jsonl",
        "--no-roofline",
    )
    seeds.append(Seed("records", results, ("rows.jsonl",), ("report {}/rows.jsonl", "report {}/rows.jsonl -o {o}.html", "report {}/rows.jsonl --format csv",
                      "report {}/rows.jsonl --format llama-bench")))  # fmt: skip
    return seeds


def _edgeformer(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "edgeformer", *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stderr[-2000:]}")


def _model(folder: Path) -> Path:
    """A Llama of 60,000 parameters with the tokenizer of `stdlib-5m`."""
    folder.mkdir(parents=True)
    config = json.loads((STDLIB / "config.json").read_text())
    config |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64,
               "head_dim": 16, "max_position_embeddings": 64, "tie_word_embeddings": True}  # fmt: skip
    config.pop("rope_parameters", None)
    config["rope_theta"] = 10_000.0
    config["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                              "original_max_position_embeddings": 32}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(STDLIB / name, folder / name)
    (folder / "chat_template.jinja").write_text(CHAT)
    (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    (folder / "added_tokens.json").write_text("{}")
    (folder.parent / "text.txt").write_text("import os\n" * 50)
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], 32), "model.norm.weight": (32,)}
    for i in range(2):
        attention = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
        ffn = {"gate_proj": (64, 32), "up_proj": (64, 32), "down_proj": (32, 64)}
        shapes |= {f"model.layers.{i}.self_attn.{k}.weight": v for k, v in attention.items()}
        shapes |= {f"model.layers.{i}.mlp.{k}.weight": v for k, v in ffn.items()}
        shapes |= {f"model.layers.{i}.{k}.weight": (32,) for k in ("input_layernorm", "post_attention_layernorm")}
    _write(folder / "model.safetensors", shapes)
    return folder


def _spec(model: Path, folder: Path) -> Path:
    from edgeformer.checkpoint import load
    from edgeformer.serialization import to_json

    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(to_json(load(str(model)).spec), indent=1))
    return folder


def _adapter(folder: Path) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "owner/name", "rank_pattern": {},
              "alpha_pattern": {"layers.1.self_attn.q_proj": 4}, "task_type": "CAUSAL_LM", "bias": "none"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    _write(
        folder / "adapter_model.safetensors",
        {name.format(i, k): s for i in range(2) for k, s in (("A", (4, 32)), ("B", (32, 4)))},
    )
    return folder


def _write(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    rng, header, data = np.random.default_rng(0), {}, b""
    for name, shape in shapes.items():
        x = (rng.standard_normal(shape) * 0.1).astype(np.float16).tobytes()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(x)]}
        data += x
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
