"""The other files in a MODEL's folder: each is read, known to be harmless, or named in a note."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from edgeformer.checkpoint.companions.files import EMBEDDER_FILES, GENERATION, TOKENIZER_FILES, TOKENIZER_PATTERNS

READ = (
    "config.json", "spec.json", "edgeformer.json", GENERATION, *TOKENIZER_FILES, *TOKENIZER_PATTERNS, *EMBEDDER_FILES,
    "modules.json", "genai_config.json", "adapter_config.json", "adapter_model.safetensors", "*.safetensors.index.json",
    "quantize_config.json", "quant_config.json", "hf_quant_config.json",
)  # fmt: skip
HARMLESS = {
    "documents and pictures": (
        "*.md", "LICENSE*", "NOTICE*", "*LICENSE*.txt", "USE_POLICY*", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp",
        "*.pdf", "*.bib", "*.ipynb", "validation.txt", "README*", "CITATION*",
    ),
    "how it was trained": (
        "training_args.bin", "trainer_state.json", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt",
        "rng_state*.pth", "*_results.json", "eval_*.txt", "data_config.json", "train_script.py", "events.out.*", "*.log",
        "similarity_evaluation*.csv", "*.lock",
    ),
    "the same model in another format": (
        "pytorch_model*.bin", "pytorch_model*.bin.index.json", "tf_model*.h5", "flax_model*.msgpack", "rust_model.ot",
        "*.h5", "*.msgpack", "*.ot", "*.tflite", "model*.onnx*", "encoder_model.onnx*", "decoder_model*.onnx*", "*.mlmodel",
        "consolidated*.safetensors", "consolidated*.pth", "params.json", "model.safetensors",
    ),
    "housekeeping": (".*", "*.partial", "sentencepiece.*.vocab", "*.vocab", "quantize_config.txt",
                     "preprocessor_config.json", "processor_config.json", "special_tokens.txt", "tokenizer_meta.json"),
}  # fmt: skip
"""Files that don't affect the model's outputs, by reason."""


def remarks(folder: Path, used: Iterable[Path]) -> list[str]:
    """Notes on the files in a folder that are neither read nor known to be harmless; `used` are those that hold the weights."""
    taken = {file.resolve() for file in used}
    harmless = [pattern for patterns in HARMLESS.values() for pattern in patterns]
    code, models, strange = [], [], []
    for file in sorted(folder.iterdir()):
        name = file.name
        if file.is_dir() or file.resolve() in taken or any(fnmatch(name, pattern) for pattern in (*READ, *harmless)):
            continue
        (code if file.suffix == ".py" else models if file.suffix in (".gguf", ".safetensors") else strange).append(name)
    notes = []
    if code:
        notes.append(
            f"{folder} contains code ({_listed(code)}), which is never run; its tokenizer or network may need it"
        )
    if models:
        notes.append(f"{folder} holds other weights ({_listed(models)}), which are not read")
    if strange:
        notes.append(f"{folder} holds unknown files, which are not read: {_listed(strange)}")
    return notes


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
