"""llama.cpp on an exported GGUF file, through the C interface of llama-cpp-python. Its KV cache is float32 here, as in other
float32 rows; variant `kv-f16` keeps it in fp16, llama.cpp's own default. Variant `gpu` leaves all layers, the cache's type and
flash attention to its GPU back end (Metal, CUDA, Vulkan); it has never been run by this project."""

from __future__ import annotations

import contextlib
import ctypes
import unicodedata
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.gguf_archs._rope import scaling_of
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import ArtefactError, InputError, RuntimeUnavailable
from edgeformer.exporters.gguf.exporter import MODEL_FILE
from edgeformer.inference import runtime as base
from edgeformer.inference.inputs import check_real
from edgeformer.inference.runtime import EVERY_TASK, Options, Session
from edgeformer.inference.text import ToolText
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.rope_longrope import LongRopeScaling
from edgeformer.spec.task import Task

_F32, _F16 = 0, 1  # ggml_type
_PADDING = 256  # tokens that a context's size is a multiple of
_SEQUENCES = 256  # the most of a context


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


class _Opened(Session):
    """A model that llama.cpp has loaded, and its context."""

    def __init__(self, folder: Path, options: Options):
        # not `import llama_cpp`: where that package is missing, a type checker takes this file for it
        llama_cpp = import_module("llama_cpp")
        manifest = bundle.opened(folder)
        super().__init__(bundle.read_spec(folder), options)
        self.folder, self.manifest, self.llama = folder, manifest, llama_cpp
        self.context = self.batch = None
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
        self.kv = "fp16" if options.variant in ("kv-f16", "gpu") else "fp32"

    def _open(self, tokens: int, chunk: int, **settings: Any) -> None:
        """Open a context of `tokens` tokens, of which `chunk` are computed at once, in place of the one before."""
        before, self.context = self.context, None
        if before:
            self.llama.llama_free(before)
        context = self.llama.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max = tokens, chunk, chunk, 1
        context.n_threads = context.n_threads_batch = self.options.threads
        context.type_k = context.type_v = _F16 if self.kv == "fp16" else _F32
        context.flash_attn_type = -1 if self.gpu else 0  # off on the CPU: it rounds scores to fp16
        for name, value in settings.items():
            setattr(context, name, value)
        self.context = self.llama.llama_init_from_model(self.model, context)
        if not self.context:
            raise ArtefactError(f"llama.cpp can't open a context of {tokens} tokens for {self.folder}")

    def _make_batch(self, tokens: int) -> None:
        """A batch of `tokens` tokens in place of the one before."""
        before, self.batch = self.batch, None
        if before is not None:
            self.llama.llama_batch_free(before)
        self.batch = self.llama.llama_batch_init(tokens, 0, 1)

    def _filled(self, batch: Any, rows: list[tuple[np.ndarray, np.ndarray, int]], wanted: Callable[[int], bool]) -> Any:
        """Fill a batch with rows of (ids, positions, sequence); `wanted(i)`: whether token i has an output."""
        batch.n_tokens = i = 0
        for ids, positions, sequence in rows:
            for token, position in zip(ids.tolist(), positions.tolist(), strict=True):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = wanted(i)
                i += 1
        batch.n_tokens = i
        return batch

    def _run(self, call: Callable[[Any, Any], int], batch: Any) -> None:
        if not self.context:
            raise ArtefactError(f"llama.cpp has no context for {self.folder}: an earlier call couldn't open one")
        if (code := call(self.context, batch)) != 0:
            raise ArtefactError(f"llama.cpp's {call.__name__} failed with code {code}")

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
            if self.batch is not None:
                self.llama.llama_batch_free(self.batch)
            if self.context:
                self.llama.llama_free(self.context)
            self.llama.llama_model_free(self.model)


class LlamaSession(_Opened):
    """One sequence in one context."""

    def __init__(self, folder: Path, options: Options):
        super().__init__(folder, options)
        self.chunk = min(self.capacity, 512)
        self._open(self.capacity, self.chunk)
        self.place: tuple[int, int] | None = None
        self._make_batch(self.chunk)

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
        count = len(ids)
        rows = [(ids, np.arange(position, position + count), 0)]
        batch = self._filled(self.batch, rows, lambda i: every or (last and i + 1 == count))
        self._run(self.llama.llama_decode, batch)
        wanted = count if every else int(last)
        if not wanted:
            return []
        logits = self.llama.llama_get_logits(self.context)
        place = ctypes.addressof(logits.contents), wanted
        if place != self.place:  # making a view takes a noticeable share of a small model's step
            self.place, self.view = place, np.ctypeslib.as_array(logits, (wanted, self.spec.vocab))
        return [self.view.copy()]


class LlamaPairSession(LlamaSession):
    """An encoder–decoder model: the context keeps the encoder's output."""

    def _source(self, ids, mask):
        real = ids[0][mask[0].astype(bool)]
        check_real(mask)
        if len(real) > self.chunk:  # the encoder reads a text in one piece
            chunk = _rounded(len(real))
            self._open(max(self.capacity, chunk), chunk)
            self._make_batch(chunk)
            self.chunk, self.place = chunk, None
        self._reset()  # or the text is refused as not following the answer before
        rows = [(real, np.arange(len(real)), 0)]
        self._run(self.llama.llama_encode, self._filled(self.batch, rows, lambda _: True))


class LlamaEncoderSession(_Opened):
    """An encoder; rows are sequences of one batch, without their padding. Its only output is the pooled embedding where the file
    asks for pooling, normalised as llama.cpp's own tools do, and the hidden states elsewhere."""

    def __init__(self, folder: Path, options: Options):
        super().__init__(folder, options)
        assert isinstance(self.spec, Encoder)
        self.encoder, self.room, self.rows = self.spec, 0, 0
        self.encoded = ("sentence_embedding",) if self.encoder.pooling else ("last_hidden_state",)
        self.pools_first_real = self.encoder.pooling is not None and self.encoder.pooling.mode == "cls"

    def _encode(self, inputs):
        count = len(inputs["input_ids"])
        if count > _SEQUENCES:
            parts = [{k: v[n : n + _SEQUENCES] for k, v in inputs.items()} for n in range(0, count, _SEQUENCES)]
            found = [self._encode(part) for part in parts]
            return {name: np.concatenate([f[name] for f in found]) for name in found[0]}
        ids, real = inputs["input_ids"], inputs["attention_mask"].astype(bool)
        check_real(real)
        slots = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        positions = slots if self.encoder.counts_padding else np.cumsum(real, 1) - 1
        rows = [(ids[n][real[n]], positions[n][real[n]], n) for n in range(len(ids))]
        if (count := int(real.sum())) > self.room or len(ids) > self.rows:
            self._make_room(count, len(ids))
        self._run(self.llama.llama_encode, self._filled(self.batch, rows, lambda _: True))
        width, llama = self.spec.width, self.llama
        if self.encoder.pooling is None:
            found = np.ctypeslib.as_array(llama.llama_get_embeddings(self.context), (count, width))
            hidden = np.zeros((*ids.shape, width), np.float32)
            hidden[real] = found
            return {"last_hidden_state": hidden}
        vectors = [llama.llama_get_embeddings_seq(self.context, n) for n in range(len(ids))]
        pooled = np.stack([np.ctypeslib.as_array(v, (width,)).copy() for v in vectors])
        if self.encoder.pooling.normalize:
            pooled /= np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
        return {"sentence_embedding": pooled}

    def _make_room(self, tokens: int, rows: int) -> None:
        """Open a context for a batch: an encoder computes all of it at once."""
        room = _rounded(tokens)
        pooling = {} if self.encoder.pooling else {"pooling_type": 0}  # none; by default the file's
        # a number of sequences that doesn't divide the tokens ends the process in llama.cpp's mean pooling
        most = min(1 << (max(rows, self.options.batch) - 1).bit_length(), _SEQUENCES)
        self._open(room, room, embeddings=True, n_seq_max=most, kv_unified=True, **pooling)
        self._make_batch(room)
        self.room, self.rows = room, most


def _rounded(tokens: int) -> int:
    return -(-tokens // _PADDING) * _PADDING


class Runtime(base.Runtime):
    """llama.cpp on the CPU, or with variant `gpu` on the GPU it was built for."""

    opens = "gguf"
    tasks = EVERY_TASK
    packages = ("llama-cpp-python",)
    extra = "llama-cpp"
    variants = ("kv-f16", "gpu")

    def refuses(self, spec, options):
        if options.batch > 1 and spec.task != Task.FEATURE_EXTRACTION:
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
        sessions: dict[Task, Callable[[Path, Options], Session]] = {
            Task.TEXT_GENERATION: LlamaSession,
            Task.FEATURE_EXTRACTION: LlamaEncoderSession,
            Task.TEXT2TEXT_GENERATION: LlamaPairSession,
        }
        return sessions[bundle.read_spec(source).task](source, options)
