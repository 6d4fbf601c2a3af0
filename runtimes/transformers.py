"""Hugging Face transformers on the unchanged checkpoint, as users run it today. Eager; variants `compile`, `cuda`, `mps`.

Attention is `sdpa` and the cache a `DynamicCache`, transformers' defaults.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import InputError, RuntimeUnavailable
from edgeformer.files.trust import check_code
from edgeformer.inference import runtime as base
from edgeformer.inference.runtime import Options, Session
from edgeformer.inference.text import ToolText, transformers_text
from edgeformer.layers.encoder import Encoder
from edgeformer.models._heads import CLASSES
from edgeformer.spec.task import Task
from edgeformer.weights.rounding import stored_format


def unreadable(loaded: LoadedModel) -> str | None:
    """None, or why transformers can't load this MODEL."""
    if loaded.folder is None or loaded.config is None or not (loaded.folder / "config.json").exists():
        return f"transformers reads Hugging Face folders, and {loaded.name} is not one; `edgeformer export --to hf` makes one"
    if loaded.weights is not None and stored_format(loaded.weights) is not None:
        return f"{loaded.name} is quantized in a format that transformers doesn't read"
    return None


class TransformersSession(Session):
    """`AutoModelForCausalLM` (encoders: `AutoModel`, encoder–decoder models: `AutoModelForSeq2SeqLM`) in float32."""

    def __init__(self, loaded: LoadedModel, options: Options):
        import torch
        import transformers

        super().__init__(loaded.spec, options)
        if (reason := unreadable(loaded)) is not None:
            raise InputError(reason)
        torch.set_num_threads(options.threads)
        if torch.get_num_interop_threads() != 1:
            with contextlib.suppress(RuntimeError):  # torch allows this once, before any parallel work
                torch.set_num_interop_threads(1)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        device = options.variant if options.variant in ("cuda", "mps") else "cpu"
        if device != "cpu" and not getattr(torch.backends if device == "mps" else torch, device).is_available():
            raise RuntimeUnavailable(f"torch finds no device for {device} here; leave out :{device}")
        autos: dict[Task, Any] = {
            Task.TEXT_GENERATION: transformers.AutoModelForCausalLM,
            Task.FEATURE_EXTRACTION: transformers.AutoModel,
            Task.TEXT2TEXT_GENERATION: transformers.AutoModelForSeq2SeqLM,
        }
        assert loaded.folder is not None
        self.folder = loaded.folder
        self.torch, self.device = torch, torch.device(device)
        check_code(loaded.folder)
        only = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
        kind = autos[loaded.spec.task]
        if isinstance(loaded.spec, Encoder) and loaded.spec.classifier is not None:
            kind = getattr(transformers, "AutoModel" + CLASSES[type(loaded.spec.classifier)])
        self.model = kind.from_pretrained(loaded.folder, dtype=torch.float32, **only)
        self.model = self.model.eval().to(self.device)
        self.call = torch.compile(self.model, dynamic=True) if options.variant == "compile" else self.model
        self._reset()

    def text_of_tool(self):
        folder = self.folder
        return ToolText("transformers") if not any(folder.glob("tokenizer*")) else transformers_text(folder)

    def _reset(self):
        self.cache = None

    def _tensor(self, array: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _step(self, ids, mask, all_positions):
        if self.spec.task == Task.TEXT2TEXT_GENERATION:
            logits = self._answer(ids, mask)
            return logits if all_positions else logits[:, -1]
        start = mask.shape[1] - ids.shape[1]
        with self.torch.inference_mode():
            outputs = self.call(
                input_ids=self._tensor(ids),
                attention_mask=None if mask.all() else self._tensor(mask),
                position_ids=self._tensor(np.clip(mask.cumsum(1) - 1, 0, None)[:, start:]),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=0 if all_positions else 1,
            )
            self.cache = outputs.past_key_values
            logits = outputs.logits.float().cpu().numpy()
        return logits if all_positions else logits[:, -1]

    def _source(self, ids, mask):
        with self.torch.inference_mode():
            self.read = None if mask.all() else self._tensor(mask)
            self.memory = self.model.get_encoder()(input_ids=self._tensor(ids), attention_mask=self.read)

    def _answer(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits [B, T, V] of an encoder–decoder model's new tokens."""
        with self.torch.inference_mode():
            outputs = self.call(
                encoder_outputs=self.memory,
                attention_mask=self.read,
                decoder_input_ids=self._tensor(ids),
                decoder_attention_mask=None if mask.all() else self._tensor(mask),
                past_key_values=self.cache,
                use_cache=True,
            )
            self.cache = outputs.past_key_values
            return outputs.logits.float().cpu().numpy()

    def _encode(self, inputs):
        with self.torch.inference_mode():
            outputs = self.call(**{k: self._tensor(v) for k, v in inputs.items()})
            wanted = self.spec.outputs()
            if "last_hidden_state" not in wanted:
                return {name: outputs[name].float().cpu().numpy() for name in wanted}
            made = {"last_hidden_state": outputs.last_hidden_state}
            if "pooler_output" in wanted:
                made["pooler_output"] = outputs.pooler_output
            if "sentence_embedding" in wanted:  # by edgeformer's own pooling: transformers' encoders have none
                from edgeformer.backends.torch.module import TorchOps

                mask = self._tensor(inputs["attention_mask"])
                made["sentence_embedding"] = self.spec.pooling.apply(TorchOps(), None, made["last_hidden_state"], mask)  # type: ignore[attr-defined]
            return {name: value.float().cpu().numpy() for name, value in made.items()}

    def peak_gpu_bytes(self):
        return self.torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def facts(self):
        return {"device": self.device.type, "kv": "fp32", "cache": "growing", "weights_mmap": False}


class Runtime(base.Runtime):
    """transformers on torch."""

    opens = "checkpoint"
    packages = ("transformers", "torch")
    tasks = base.EVERY_TASK
    extra = "transformers"
    variants = ("compile", "cuda", "mps")

    def declines_checkpoint(self, loaded):
        return unreadable(loaded)

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        assert isinstance(source, LoadedModel)
        return TransformersSession(source, options)
