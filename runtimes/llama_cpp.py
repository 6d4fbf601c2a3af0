"""llama.cpp on an exported GGUF file, through the C interface of llama-cpp-python. Its KV cache is float32 here, as in other
float32 rows; variant `kv-f16` keeps it in fp16, llama.cpp's own default. Variant `gpu` leaves all layers, the cache's type and
flash attention to its GPU back end (Metal, CUDA, Vulkan); it has never been run by this project."""

from __future__ import annotations

import contextlib
import ctypes
import unicodedata
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.gguf_archs._rope import scaling_of
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import ArtefactError, InputError, RuntimeUnavailable
from edgeformer.exporters.gguf.exporter import MODEL_FILE
from edgeformer.inference import runtime as base
from edgeformer.inference.runtime import Options, Session
from edgeformer.inference.text import ToolText
from edgeformer.layers.rope_longrope import LongRopeScaling
from edgeformer.spec.task import Task

_F32, _F16 = 0, 1  # ggml_type
_PADDING = 256  # tokens that a context's size is a multiple of


_ERROR = 4  # ggml_log_level
_errors: list[str] = []


def _keep_log(llama: ModuleType) -> None:
    """Keep only the errors of llama.cpp's log (hundreds of lines), for messages. The callback lives as long as the module."""
    global _log

    def keep(level: int, text: bytes, data: object) -> None:
        if level == _ERROR:
            _errors.append(text.decode(errors="replace").strip())

    _log = llama.llama_log_callback(keep)
    llama.llama_log_set(_log, ctypes.c_void_p(0))
    _errors.clear()


class LlamaSession(Session):
    """One sequence in one context."""

    def __init__(self, folder: Path, options: Options):
        # not `import llama_cpp`: where that package is missing, a type checker takes this file for it
        llama_cpp = import_module("llama_cpp")
        manifest = bundle.opened(folder)
        super().__init__(bundle.read_spec(folder), options)
        self.manifest = manifest
        self.llama = llama_cpp
        _keep_log(llama_cpp)
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        self.gpu = options.variant == "gpu"
        if self.gpu and not llama_cpp.llama_supports_gpu_offload():
            raise RuntimeUnavailable(
                "this build of llama.cpp has no GPU back end; leave out :gpu, or install a build with one"
            )
        settings.n_gpu_layers = self.spec.depth() + 1 if self.gpu else 0
        self.model = llama_cpp.llama_model_load_from_file(str(folder / MODEL_FILE).encode(), settings)
        if not self.model:
            raise ArtefactError(f"llama.cpp can't load {folder / MODEL_FILE}: {'; '.join(_errors[:2])}")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = self.capacity
        context.n_batch = context.n_ubatch = min(self.capacity, 512)
        context.n_threads = context.n_threads_batch = options.threads
        self.kv = "fp16" if options.variant in ("kv-f16", "gpu") else "fp32"
        context.type_k = context.type_v = _F16 if self.kv == "fp16" else _F32
        context.flash_attn_type = -1 if self.gpu else 0  # off on the CPU: it rounds scores to fp16
        context.n_seq_max = 1
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.context:
            raise ArtefactError(f"llama.cpp can't open a context of {self.capacity} tokens for {folder}")
        self.chunk = int(context.n_batch)
        self.place: tuple[int, int] | None = None
        self.batch = llama_cpp.llama_batch_init(self.chunk, 0, 1)

    def _reset(self):
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)

    def _step(self, ids, mask, all_positions):
        if not mask.all():
            raise InputError(
                "this adapter runs llama.cpp without padding; use the runtime onnxruntime for padded batches"
            )
        parts = []
        for start in range(0, ids.shape[1], self.chunk):
            part = ids[0, start : start + self.chunk]
            last = start + len(part) == ids.shape[1]
            parts += self._decode(part, self.length + start, all_positions, last)
        y = np.concatenate(parts)[None]
        return y if all_positions else y[:, -1]

    def _decode(self, ids: np.ndarray, position: int, every: bool, last: bool) -> list[np.ndarray]:
        batch, count = self.batch, len(ids)
        batch.n_tokens = count
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = int(token), position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every or (last and i + 1 == count)
        if (code := self.llama.llama_decode(self.context, batch)) != 0:
            raise ArtefactError(f"llama.cpp's llama_decode failed with code {code}")
        wanted = count if every else int(last)
        if not wanted:
            return []
        logits = self.llama.llama_get_logits(self.context)
        place = ctypes.addressof(logits.contents), wanted
        if place != self.place:  # making a view takes a noticeable share of a small model's step
            self.place, self.view = place, np.ctypeslib.as_array(logits, (wanted, self.spec.vocab))
        return [self.view.copy()]

    def text_of_tool(self):
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        vocab, llama = self.llama.llama_model_get_vocab(self.model), self.llama
        if llama.llama_vocab_type(vocab) == 0:  # a file without a tokenizer
            return ToolText("llama.cpp")
        count = llama.llama_vocab_n_tokens(vocab)
        stops = frozenset(i for i in range(count) if llama.llama_vocab_is_eog(vocab, i))
        template = llama.llama_model_chat_template(self.model, None)
        render = None
        if template is not None:
            ends, begins = llama.llama_vocab_eos(vocab), llama.llama_vocab_bos(vocab)
            eos, bos = (llama.llama_vocab_get_text(vocab, i).decode() if i >= 0 else "" for i in (ends, begins))
            chat = Jinja2ChatFormatter(template.decode(), eos, bos)

            render = lambda messages: chat(messages=messages).prompt  # noqa: E731

        return ToolText(
            "llama.cpp",
            lambda text: self.tokenize(text, special=False, parse=True),
            lambda text: self.tokenize(text, parse=True),
            render,
            stops,
        )

    def excuses(self, text):
        data = self.manifest.get("tokenizer") or {}
        composed = text == unicodedata.normalize("NFC", text)
        return (data.get("composes") and not composed) or (data.get("wordpiece") and not text.isascii())

    def tokenize(self, text: str, *, special: bool = True, parse: bool = False) -> list[int]:
        """llama.cpp's own ids of a text. `special`: add special tokens around it; `parse`: recognise those inside it."""
        data = text.encode()
        vocab = self.llama.llama_model_get_vocab(self.model)
        ids = (self.llama.llama_token * (len(data) + 16))()
        count = self.llama.llama_tokenize(vocab, data, len(data), ids, len(ids), special, parse)
        return list(ids[:count])

    def facts(self):
        layers = self.spec.depth() + 1 if self.gpu else 0
        device = "gpu" if self.gpu else "cpu"
        return {"device": device, "gpu_layers": layers, "kv": self.kv, "weights_mmap": True, "build": self._build()}

    def _build(self) -> str:
        return self.llama.llama_print_system_info().decode().strip()

    def __del__(self):
        with contextlib.suppress(Exception):
            self.llama.llama_batch_free(self.batch)
            self.llama.llama_free(self.context)
            self.llama.llama_model_free(self.model)


class Runtime(base.Runtime):
    """llama.cpp on the CPU, or with variant `gpu` on the GPU it was built for."""

    opens = "gguf"
    tasks = (Task.TEXT_GENERATION,)
    packages = ("llama-cpp-python",)
    extra = "llama-cpp"
    variants = ("kv-f16", "gpu")

    def refuses(self, spec, options):
        if options.batch > 1:
            return "this adapter runs one sequence at a time"
        scaling, context = scaling_of(spec), min(options.capacity or spec.context, spec.context)
        if isinstance(scaling, LongRopeScaling) and -(-context // _PADDING) * _PADDING > scaling.original_context:
            return (
                f"llama.cpp chooses LongRoPE's factors by the size of its context, here {context:,} tokens: above"
                f" {scaling.original_context:,} it uses the long ones from the first token on, which this model doesn't"
            )
        return super().refuses(spec, options)

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        assert isinstance(source, Path)
        return LlamaSession(source, options)
