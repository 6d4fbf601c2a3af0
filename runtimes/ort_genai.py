"""ONNX Runtime GenAI on an exported artefact: its own generation loop over the same file. The variant `kernels` loads
edgeformer's native library."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.backends.native.library import LIBRARY, load_library
from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.companions.files import read_object
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import ArtefactError, InputError
from edgeformer.files.paths import inside
from edgeformer.files.scratch import temporary_folder
from edgeformer.files.trust import check_code, walk
from edgeformer.inference import runtime as base
from edgeformer.inference.runtime import Options, Session
from edgeformer.inference.text import ToolText
from edgeformer.spec import Model
from edgeformer.spec.task import Task

_LIBRARY = "libedgeformer_native.so"


class GenaiSession(Session):
    """GenAI's `Generator`. If the next token is its own greedy choice, its own loop takes it; any other token is appended, so
    that every runtime can be made to decode the same ids."""

    all_positions = False

    def __init__(self, folder: Path, options: Options, spec: Model | None = None):
        import onnxruntime_genai

        if spec is None:
            manifest = bundle.opened(folder)
            spec = bundle.read_spec(folder)
            options = replace(options, capacity=min(options.capacity or manifest["context"], manifest["context"]))
        super().__init__(spec, options)
        self.folder = folder
        if not (folder / "genai_config.json").exists():
            raise ArtefactError(
                f"{folder} has no genai_config.json: it is a folder for transformers.js, or an architecture that"
                " GenAI's decoder type does not support"
            )
        manifest = bundle.read_manifest(folder) if (folder / bundle.MANIFEST).exists() else {}
        self.kv = "int8" if manifest.get("kv") == "int8" else manifest.get("compute")
        check_code(folder)  # folders from elsewhere have no manifest, and are checked here as well
        told = _settings(folder)
        search, ends = told.get("search", {}), told["model"].get("eos_token_id", [])
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self.shared = bool(search.get("past_present_share_buffer"))
        self.genai: Any = onnxruntime_genai  # its names come from a compiled module
        self._scratch = contextlib.ExitStack()  # lives as long as the session: GenAI reads the tokenizer later
        if options.variant == "kernels":
            folder = self._with_library(folder)
        config = self.genai.Config(str(folder))
        # GenAI's default is half the machine's threads, which would distort a comparison
        settings: dict[str, Any] = {"intra_op_num_threads": options.threads, "inter_op_num_threads": 1}
        if options.variant == "kernels":
            settings["custom_ops_library"] = _LIBRARY
        config.overlay(json.dumps({"model": {"decoder": {"session_options": settings}}}))
        self.model = self.genai.Model(config)
        self._reset()

    def _with_library(self, folder: Path) -> Path:
        """Links to a folder's files, and the native library: GenAI loads libraries from the model's own folder only."""
        beside = self._scratch.enter_context(temporary_folder())
        for file in (f for f in folder.iterdir() if f.name != _LIBRARY):
            (beside / file.name).symlink_to(file.resolve(), target_is_directory=file.is_dir())
        shutil.copy(LIBRARY.path(), beside / _LIBRARY)
        return beside

    def __del__(self) -> None:
        if hasattr(self, "_scratch"):
            self._scratch.close()

    def _reset(self):
        params = self.genai.GeneratorParams(self.model)
        params.set_search_options(
            batch_size=self.options.batch,
            max_length=self.capacity,
            do_sample=False,
            past_present_share_buffer=self.shared,
        )
        self.generator, self.greedy = self.genai.Generator(self.model, params), None

    def _step(self, ids, mask, all_positions):
        if all_positions:
            raise InputError("GenAI returns only the last position's logits")
        if not mask.all():
            raise InputError("this adapter runs GenAI without padding; use the runtime onnxruntime for padded batches")
        if ids.size == 1 and int(ids[0, 0]) == self.greedy:
            self.generator.generate_next_token()  # its own loop chooses the requested token
        else:
            self.generator.append_tokens(np.ascontiguousarray(ids, np.int32))
        logits = np.asarray(self.generator.get_logits(), np.float32).reshape(ids.shape[0], -1, self.spec.vocab)[:, -1]
        best = int(logits[0].argmax())
        self.greedy = None if best in self.ends else best  # after an EOS id its loop would stop
        return logits

    def text_of_tool(self):
        try:
            tokenizer = self.genai.Tokenizer(self.model)
        except RuntimeError:  # the folder has no tokenizer, or one that GenAI can't read
            return ToolText("ONNX Runtime GenAI", stops=frozenset(self.ends))

        def render(messages):
            return tokenizer.apply_chat_template(json.dumps(list(messages)), add_generation_prompt=True)

        has_template = (self.folder / "chat_template.jinja").exists()
        return ToolText(
            "ONNX Runtime GenAI",
            lambda text: tokenizer.encode(text).tolist(),
            None,
            render if has_template else None,
            frozenset(int(i) for i in tokenizer.eos_token_ids),
        )

    def facts(self):
        return {
            "device": "cpu",
            "provider": "CPUExecutionProvider",
            "kv": self.kv,
            "prefill_logits": "all",
            **({"isa": load_library().isa()} if self.options.variant == "kernels" else {}),
        }  # it does not feed num_logits_to_keep


_SESSION = frozenset((
    "log_id", "log_severity_level", "log_verbosity_level", "intra_op_num_threads", "inter_op_num_threads", "provider_options",
    "enable_cpu_mem_arena", "enable_mem_pattern", "disable_cpu_ep_fallback", "disable_quant_qdq", "use_env_allocators",
    "graph_optimization_level", "custom_ops_library",
))  # fmt: skip
"""GenAI's session options that load no code and write no files (custom_ops_library is checked separately)."""


def _settings(folder: Path) -> dict[str, Any]:
    """A folder's genai_config.json.

    Raises:
        ArtefactError: the model's settings are missing, a file is outside the folder, or session or provider options load
            libraries, write files, or are unknown.
    """
    file = folder / "genai_config.json"
    told = read_object(file)
    if not isinstance(told.get("model"), dict) or not isinstance(told.get("search", {}), dict):
        raise ArtefactError(f"{file}: `model` is missing or no JSON object, or `search` is no JSON object")
    for key, value in walk(told):
        if key == "filename" or key.endswith("_filename"):
            inside(folder, value, f"{key} in {file}", ArtefactError)
        if key == "session_options":
            unknown = sorted(value.keys() - _SESSION) if isinstance(value, dict) else ["no object"]
            if unknown:
                raise ArtefactError(
                    f"{file} has session options that may write files or load code: {', '.join(unknown)[:200]}; remove them"
                )
        if key == "provider_options" and not _plain_providers(value):
            raise ArtefactError(f"{file} has provider options other than names with plain values: {str(value)[:200]}")
    return told


def _plain_providers(value: Any) -> bool:
    """Whether all provider options are numbers, booleans or words: a path could name a library."""
    options = [o for entry in value for o in entry.values()] if _all(value, list, dict) else None
    if options is None or not all(isinstance(o, dict) for o in options):
        return False
    words = [v for o in options for v in o.values() if isinstance(v, str)]
    return all(not isinstance(v, (dict, list)) for o in options for v in o.values()) and not any(
        set("/\\.") & set(word) for word in words
    )


def _all(value: object, outer: type, inner: type) -> bool:
    return isinstance(value, outer) and all(isinstance(v, inner) for v in value)  # type: ignore[attr-defined]


class Runtime(base.Runtime):
    """onnxruntime-genai."""

    opens = "onnx"
    tasks = (Task.TEXT_GENERATION,)
    packages = ("onnxruntime-genai",)
    extra = "ort-genai"
    variants = ("kernels",)

    def refuses(self, spec, options):
        if options.batch > 1:
            return "GenAI appends given tokens to a batch only once; after that it continues only with its own choices"
        return super().refuses(spec, options)

    def declines(self, manifest, variant):
        if "genai_config.json" not in manifest["files"]:
            return "the folder has no genai_config.json"
        if variant != "kernels":
            return None
        if not manifest.get("one_node"):
            return "the native library has no kernel for this model's whole step"
        return LIBRARY.cannot_be_built()

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        assert isinstance(source, Path)
        return GenaiSession(source, options)
