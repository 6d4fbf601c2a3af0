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


_GENERATE = "generate {} --ids 5,6 -n 2"
_VERIFY = "verify {} --against {m} --length 8 --gen 2"
_READ = ("inspect {}", "spec {}", "targets {} --json", "advise {}", "generate {} -p hello -n 3", _GENERATE)
_EXPORTS = ("export {} -o {o}", "export {} -o {o} --weights link", "export {} --to hf -o {o}", "quantize {} -o {o}")
_TOKENS = (
    "generate {} -p hello -n 2",
    "generate {} --chat -p hi -n 2",
    "export {} -o {o}",
    "export {} --to gguf -o {o}",
)
_MORE = (*_TOKENS, "export {} --to mlx -o {o}", "convert {} -o {o}", "launches {}")


def build(folder: Path) -> list[Seed]:
    """The corpus, below a folder."""
    model = _model(folder / "m")
    spec, adapter = _spec(model, folder / "s"), _adapter(folder / "a")
    _edgeformer("export", model, "-o", folder / "x")
    _edgeformer("export", model, "-o", folder / "l", "--weights", "link")
    _edgeformer("quantize", model, "-o", folder / "q")
    _edgeformer("export", model, "--to", "gguf", "-o", folder / "g")
    _edgeformer("export", model, "--to", "mlx", "-o", folder / "n")
    records = folder / "r"
    records.mkdir()
    small = ("--rounds", "2", "--prompt", "4", "--gen", "2", "--no-roofline")
    _edgeformer("bench", folder / "x", *small, "--json", records / "rows.jsonl")
    said = "generation_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json"
    read_spec = (*_READ[:4], "export {} -o {o}", "new {o} --like {}/spec.json")
    quality = "quality {} --against {m} --text {m}/../text.txt --tokens 16 --window 8"
    gguf = tuple(
        command.replace("{}", "{}/model.gguf") for command in ("inspect {}", *_TOKENS, "export {} --to hf -o {o}")
    )
    adapted = _adapted("inspect {}", _GENERATE, *_EXPORTS)
    reports = tuple(
        f"report {{}}/rows.jsonl{more}" for more in ("", " -o {o}.html", " --format csv", " --format llama-bench")
    )
    return [
        Seed("config", model, ("config.json",), (*_READ, *_EXPORTS, *_MORE)),
        Seed("safetensors", model, ("model.safetensors",), ("inspect {}", _GENERATE, *_EXPORTS)),
        Seed("tokenizer", model, ("tokenizer.json", "tokenizer_config.json"), _MORE),
        Seed("companions", model, said, _TOKENS),
        Seed("spec", spec, ("spec.json",), read_spec),
        Seed("adapter", adapter, ("adapter_config.json", "adapter_model.safetensors"), adapted),
        Seed("onnx", folder / "x", ("model.onnx",), (_VERIFY, _GENERATE, "inspect {}")),
        Seed("manifest", folder / "x", ("edgeformer.json",), (_VERIFY, _GENERATE, "inspect {}", "export {m} -o {} ", quality)),
        Seed("linked", folder / "l", ("edgeformer.json", "model.onnx"), (_VERIFY, "inspect {}")),
        Seed("quantized", folder / "q", ("edgeformer.json", "model.safetensors", "spec.json"),
             ("inspect {}", _VERIFY, _GENERATE, "export {} -o {o}")),
        Seed("gguf", folder / "g", ("model.gguf",), gguf),
        Seed("mlx", folder / "n", ("config.json", "model.safetensors", "edgeformer.json"),
             ("inspect {}", _GENERATE, "export {} -o {o}")),
        Seed("records", records, ("rows.jsonl",), reports),
    ]  # fmt: skip


def _adapted(*commands: str) -> tuple[str, ...]:
    """Commands on the sound model with the damaged adapter, and on the adapter alone."""
    return (*(command.replace("{}", "{m}+{}") for command in commands), "inspect {}")


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
    config |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config |= {"intermediate_size": 64, "head_dim": 16, "max_position_embeddings": 64, "tie_word_embeddings": True}
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
    from edgeformer.checkpoint.loading import load
    from edgeformer.spec.serialization import to_json

    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(to_json(load(str(model)).spec), indent=1))
    return folder


def _adapter(folder: Path) -> Path:
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "owner/name",
    }
    config |= {
        "rank_pattern": {},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 4},
        "task_type": "CAUSAL_LM",
        "bias": "none",
    }
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
