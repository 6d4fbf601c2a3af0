"""What many tests need: tiny random transformers models, every session of a model, the oracle's logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeformer.checkpoint import bundle, saving
from edgeformer.checkpoint.loading import LoadedModel, load
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options, Session
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.spec import tensors

ROOT = Path(__file__).parent.parent
STDLIB = ROOT / "models" / "stdlib-5m"


def hf_model(folder: Path, model_type: str, *, auto: str | None = None, **config):
    """A random transformers model in float32, saved to `folder`. A large initializer_range makes attention sharp."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model(model_type, **config)
    kinds = getattr(transformers, auto or ("AutoModel" if model_type == "bert" else "AutoModelForCausalLM"))
    model = kinds.from_config(settings, attn_implementation="eager").float().eval()
    with torch.no_grad():  # biases start at 0 and norms at 1, where mistakes don't show
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(torch.randn_like(p) * 0.2)
    model.save_pretrained(folder)
    return model


def hf_logits(model, ids: np.ndarray) -> np.ndarray:
    """transformers' logits [T, V] of one unpadded sequence."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(ids[None])).logits[0].numpy()


def sessions(loaded: LoadedModel, folder: Path, *, batch: int = 1, capacity: int | None = None) -> dict[str, Session]:
    """One session per back end: numpy, torch, MLX, ONNX with fast bodies, ONNX in plain operators; the native engine and ONNX
    Runtime with its library, if they cover the model and the library can be built."""
    options = Options(threads=1, batch=batch, capacity=capacity)
    made = {name: require(name)[0].open(loaded, options) for name in ("numpy", "torch", "mlx")}
    for target in ("cpu", "portable"):
        where = folder / f"onnx-{target}"
        if not where.exists():
            export_onnx(loaded, where, target=target)
        made[f"onnx-{target}"] = require("onnxruntime")[0].open(where, options)
    native = require("native")[0]
    if (native.unavailable() or native.refuses(loaded.spec, options)) is None:
        made["native"] = native.open(loaded, options)
    cpu = folder / "onnx-cpu"
    if native.unavailable() is None and bundle.read_manifest(cpu).get("one_node"):
        made["onnx-kernels"] = require("onnxruntime")[0].open(cpu, replace(options, variant="kernels"))
    return made


def run_cached(session: Session, ids: np.ndarray, valid: np.ndarray | None, prefill: int) -> np.ndarray:
    """Logits [B, T, V]: a prefill, then single steps."""
    session.reset()

    def cut(a: int, b: int) -> np.ndarray | None:
        return None if valid is None else valid[:, a:b]

    parts = [session.forward(ids[:, :prefill], cut(0, prefill), all_positions=True)]
    for i in range(prefill, ids.shape[1]):
        parts.append(session.forward(ids[:, i : i + 1], cut(i, i + 1))[:, None])
    return np.concatenate(parts, 1)


def random_ids(vocab: int, *shape: int, seed: int = 0) -> np.ndarray:
    """int64 ids."""
    return np.random.default_rng(seed).integers(0, vocab, shape)


def load_tiny(folder: Path, model_type: str, *, auto: str | None = None, **config) -> tuple[LoadedModel, object]:
    """A tiny random model twice: ours and transformers'."""
    model = hf_model(folder, model_type, auto=auto, **config)
    return load(folder), model


def open_session(folder, **options):
    return require("onnxruntime")[0].open(folder, Options(threads=1, **options))


def small_spec(**attention):
    fields = dict(heads=4, kv_heads=2, head_dim=16, position=Rope(dim=16)) | attention
    norm = RMSNorm()
    block = Block(attention=GQA(**fields), ffn=GLU(hidden=24), norm=norm)
    return Decoder(vocab=31, width=32, context=64, blocks=(block,) * 2, norm=norm)


def saved(spec, folder, scale=0.3):
    rng = np.random.default_rng(0)
    weights = {n: (rng.standard_normal(s) * scale).astype(np.float32) for n, s in tensors(spec).items()}
    saving.save(spec, weights, folder)
    return load(folder), weights


def record_errors(table: str, row: str, errors: dict[str, float]) -> None:
    """Keep what a test measured, for `tests/tables` to make a table of; nothing unless EDGEFORMER_TABLES names a folder."""
    if folder := os.environ.get("EDGEFORMER_TABLES"):
        file = Path(folder) / table / f"{row}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"row": row, "errors": errors}))


_PEAK = """
import atexit, pathlib, sys

status, kept = pathlib.Path("/proc/self/status"), pathlib.Path(sys.argv.pop(1))
if status.exists():  # the kernel's own account of this program: what wait4 tells holds its parent's, too
    atexit.register(lambda: kept.write_text(status.read_text().split("VmHWM:")[1].split()[0]))
from edgeformer.cli import main

main()
"""


def refusal(*arguments: object, seconds: float = 10.0, megabytes: int = 500) -> str:
    """The one error of a command that has to refuse what it is given; its time and memory, imports included, are bounded."""
    with tempfile.TemporaryDirectory() as folder:
        peak, start = Path(folder, "peak"), time.monotonic()
        command = [sys.executable, "-P", "-c", _PEAK, str(peak), *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"RUST_BACKTRACE": "0"}, timeout=60
        )
        taken = time.monotonic() - start
        kilobytes = int(peak.read_text()) if peak.exists() else 0
    text = done.stdout + done.stderr
    assert done.returncode == 2, (done.returncode, text[-2000:])
    assert text.count("error: ") == 1 and "Traceback" not in text, text[-2000:]
    assert taken < seconds and kilobytes < megabytes * 1024, (taken, kilobytes)
    assert len(text) < 6000
    return text
