"""Apple Core AI on a bundle of `export --to coreai`.

On a Mac the system's runtime computes it, by default on the device that it chooses; variants prefer one: `cpu`, `gpu`, `ane`. On
Linux the coreai-core package has a reference interpreter: it verifies an asset, and its time says nothing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import ArtefactError, InputError, RuntimeUnavailable
from edgeformer.exporters.coreai import package
from edgeformer.exporters.coreai.contract import check_bundle
from edgeformer.exporters.coreai.store import DECODE, ENCODE, MAIN, read_names, states
from edgeformer.files.paths import inside
from edgeformer.files.trust import isolated
from edgeformer.inference import runtime as base
from edgeformer.inference.runtime import Options, Session
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.runtimes._coreai_worker import read_frame, write_frame
from edgeformer.spec.task import Task

UNITS = ("cpu", "gpu", "ane")


class Worker:
    """The process that has loaded the asset.

    Raises:
        ArtefactError: it can't be loaded; the message has the runtime's own last line.
    """

    def __init__(self, asset: Path, unit: str):
        self.asset, self._log = asset, tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        environment = os.environ | isolated(os.environ)
        if sys.platform == "darwin":
            environment["USE_OS_COREAI"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgeformer.runtimes._coreai_worker", str(asset.resolve()), unit or "default"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self._answer()

    def ask(
        self, header: dict[str, Any], arrays: dict[str, np.ndarray]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The answer to one command.

        Raises:
            ArtefactError: the runtime failed, or its process ended.
        """
        assert self._process.stdin is not None
        try:
            with contextlib.suppress(OSError):  # it has ended; the answer says so
                write_frame(self._process.stdin, header, arrays)
            return self._answer()
        except BaseException:
            self._process.kill()  # an answer that is still to come must not be taken for the next one's
            raise

    def _answer(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        assert self._process.stdout is not None
        try:
            header, arrays = read_frame(self._process.stdout)
        except EOFError:
            code = self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ArtefactError(
                f"Core AI's runtime ended ({how}) while it ran {self.asset}: {self._last_line()}"
            ) from None
        if "error" in header:
            raise ArtefactError(f"Core AI can't run {self.asset}: {header['error'].splitlines()[0]}")
        return header, arrays

    def _last_line(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line and "ODIE" not in line), "it gave no reason")

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # unsent bytes for a process that has ended
                    stream.close()
            self._log.close()


class CoreAiSession(Session):
    """A decoder with its caches as states, or an encoder."""

    def __init__(self, folder: Path, options: Options):
        manifest = bundle.opened(folder)
        super().__init__(bundle.read_spec(folder), options)
        self.decodes = self.spec.task != Task.FEATURE_EXTRACTION
        self.reads = isinstance(self.spec, EncoderDecoder)
        self.memory: dict[str, np.ndarray] = {}
        if self.decodes and not self.reads:
            check_bundle(folder)
        asset = inside(folder, manifest.get("model_file", ""), f"the manifest of {folder}", ArtefactError)
        self.dtype = np.float16 if manifest["compute"] == "fp16" else np.float32
        self.worker = Worker(asset, options.variant)
        if self.decodes:
            shapes = {s.public: s.shape(self.capacity) for s in states(self.spec)}
            self.worker.ask({"do": "states", "dtype": np.dtype(self.dtype).name, "shapes": shapes}, {})

    def _step(self, ids, mask, all_positions):
        _refuse_padding(mask)
        arrays = {"input_ids": ids.astype(np.int32), "position_ids": np.arange(mask.shape[1], dtype=np.int32)[None]}
        if self.prefix is not None:
            arrays["prefix_length"] = np.asarray(self.prefix, np.int32)
        function = DECODE if self.reads else MAIN
        logits = self._run(function, arrays | self.memory, ["logits"])["logits"].astype(np.float32)
        return logits if all_positions else logits[:, -1]

    def _source(self, ids, mask):
        _refuse_padding(mask)
        names = [name for name, *_ in read_names(self.spec).values()]
        self.memory = self._run(ENCODE, {"input_ids": ids.astype(np.int32)}, names)

    def _encode(self, inputs):
        arrays = {i.name: inputs[i.name].astype(np.int32) for i in self.spec.inputs()}
        made = self._run(MAIN, arrays, list(self.spec.outputs()))
        return {name: array.astype(np.float32) for name, array in made.items()}

    def _run(self, function: str, arrays: dict[str, np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
        command = {
            "do": "run",
            "function": function,
            "stateful": self.decodes and function != ENCODE,
            "outputs": outputs,
        }
        header, made = self.worker.ask(command, arrays)
        self.took_ns = header["ns"]
        return made

    def facts(self):
        unit = self.options.variant or ("system's choice" if sys.platform == "darwin" else "reference interpreter")
        kv = "fp16" if self.dtype == np.float16 else "fp32"
        return {"device": unit, "weights_mmap": False, **({"kv": kv, "prefill_logits": "all"} if self.decodes else {})}


def _refuse_padding(mask: np.ndarray) -> None:
    if not mask.all():
        raise InputError("this Core AI model has no input for padding: give it one text at a time, without padding")


class Runtime(base.Runtime):
    """Core AI. Batches of decoders need an input for padding, which Apple's runner doesn't feed: they have one row."""

    opens = "coreai"
    packages = ("coreai-core",)
    extra = package.EXTRA
    tasks = base.EVERY_TASK
    prefixes = True
    slow = sys.platform != "darwin"
    timed = sys.platform == "darwin"

    @property
    def variants(self) -> tuple[str, ...]:  # type: ignore[override]
        """Devices to prefer, on a Mac."""
        return UNITS if sys.platform == "darwin" else ()

    def unavailable(self):
        return package.missing()

    def has(self, variant):
        return variant in UNITS

    def refuses(self, spec, options):
        if options.variant and sys.platform != "darwin":
            return "devices can be chosen on macOS only; on Linux Core AI has an interpreter on the CPU"
        if spec.task != Task.FEATURE_EXTRACTION and options.batch > 1:
            return "its decoders take one sequence at a time"
        return super().refuses(spec, options)

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        if isinstance(source, LoadedModel):
            raise RuntimeUnavailable("Core AI opens the bundles of `edgeformer export --to coreai`")
        return CoreAiSession(source, options)
