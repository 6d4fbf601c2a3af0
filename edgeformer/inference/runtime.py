"""The runtime protocol: `Runtime.open(...)` returns a session with one verb, `forward`.

`forward` covers prefill (T > 1) and decode (T = 1). The checks that every runtime needs (ids within the vocabulary, length
within the cache) live here, so adapters contain only their runtime's calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.checkpoint.manifest import Manifest
from edgeformer.errors import InputError, RuntimeFault, is_fault
from edgeformer.inference.faults import fault, guard
from edgeformer.inference.inputs import check_ids, check_valid, checked_encoder_inputs, last_real
from edgeformer.inference.profile import Operation
from edgeformer.inference.text import ToolText
from edgeformer.inference.threads import physical_cores
from edgeformer.layers.rope import cache_restart
from edgeformer.ops.sampling import Rules, Sampling, check_logits, choose
from edgeformer.spec import Model
from edgeformer.spec.task import Task

PACKAGE = "edgeformer.runtimes"
EVERY_TASK = tuple(Task)
FORMATS = {
    "checkpoint": "a checkpoint",
    "onnx": "an ONNX artefact",
    "mlx": "an MLX artefact",
    "gguf": "a GGUF artefact",
    "coreai": "a Core AI artefact",
}
"""Format that runtimes open -> its name in messages."""


@dataclass(frozen=True)
class Options:
    """How to open a session.

    threads: compute threads, set explicitly in every runtime, physical cores by default; capacity: longest sequence (prompt +
    generated) the cache must hold, the model's context by default; batch: sequences at once; variant: see `Runtime.variants`;
    precision: of the weights, for runtimes that open a checkpoint; device: torch's device.
    """

    threads: int = field(default_factory=physical_cores)
    capacity: int | None = None
    batch: int = 1
    variant: str = ""
    precision: str = "fp32"
    device: str = "cpu"


@dataclass
class Served:
    """A server's answer: its text, and the `time.perf_counter_ns` of the request and of each token's arrival."""

    text: str
    asked_ns: int
    arrivals_ns: list[int]


class Session:
    """An opened model. Decoders implement `_step` and `_reset`, encoders `_encode`, encoder–decoders also `_source`."""

    all_positions: ClassVar[bool] = True
    """Whether `forward` can return logits of every new position, not only the last."""

    compute: str | None = None
    """The compute precision where it differs from the artefact's manifest: fp32, fp16 or bf16."""

    took_ns: int | None = None
    """Duration of the last `forward` or `encode` by the clock of the process that did the work, where that is another one."""

    served: ClassVar[bool] = False
    """Whether this is a server's client: it has `serve` and no `forward`."""

    encoded: tuple[str, ...] | None = None
    """An encoder's outputs, where they are not all of its spec's."""

    pools_first_real: bool = False
    """Whether an encoder's embedding is that of the first real token, also in a row that begins with padding."""

    prefix_length: int | None = None
    """Number of prefix tokens that every token attends to, in a prefix LM; by default all tokens of the first `forward`."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        answered = ("_step", "_source", "_reset", "_encode", "serve", "text", "text_of_tool", "profile", "facts")
        guard(cls, dict.fromkeys(answered))

    def __init__(self, spec: Model, options: Options):
        self.spec, self.options = spec, options
        self.capacity = min(options.capacity or spec.context, spec.context)
        self.length, self._turn, self._read = 0, 0, False
        self._mask = np.zeros((options.batch, self.capacity), np.int64)
        self.prefix: np.ndarray | None = None
        self._restart = cache_restart(spec)
        self._seen: list[np.ndarray] = []  # the ids so far, for models whose cache may have to be rebuilt

    def reset(self) -> None:
        """Clear the sequence and its cache."""
        self.length = 0
        self._seen.clear()
        self._reset()

    def forward(self, ids: np.ndarray, valid: np.ndarray | None = None, *, all_positions: bool = False) -> np.ndarray:
        """Append new tokens to the sequence and compute their logits.

        Args:
            ids: int64 [B, T].
            valid: int64 [B, T], 0 where padded; None if nothing is padded.
            all_positions: return logits of all T positions instead of the last.

        Returns:
            float32 [B, V], the logits of each row's last real token (undefined for a row that is all padding), or [B, T, V]
            with `all_positions`.

        Raises:
            InputError: an id outside the vocabulary, or more tokens than the cache holds; raised before anything runs.
        """
        end = self.length + ids.shape[1]
        check_ids(ids, self.spec.vocab)
        if self.spec.task == Task.TEXT2TEXT_GENERATION and not self._read:
            raise InputError("an encoder–decoder model needs its source text first: call Session.source before forward")
        if end > self.capacity:
            raise InputError(
                f"{self.length} + {ids.shape[1]} tokens do not fit: the cache holds {self.capacity} and the model has"
                f" {self.spec.context} positions. Shorten the prompt or raise the capacity"
            )
        if ids.shape[0] != self._mask.shape[0]:
            raise InputError(f"the session was opened for batches of {self._mask.shape[0]}, got {ids.shape[0]}")
        if valid is not None:
            check_valid(np.asarray(valid), ids.shape)
        self._mask[:, self.length : end] = 1 if valid is None else valid
        if self.length == 0 and self.spec.prefixed:
            given = self._mask[:, :end].sum(1)
            if self.prefix_length is not None and self.prefix_length > given.min():
                raise InputError(
                    f"the first forward must hold the whole prefix of {self.prefix_length} tokens, got {given.min()}"
                )
            self.prefix = given if self.prefix_length is None else np.full(len(ids), self.prefix_length)
        trailing = valid is not None and not all_positions and not np.all(valid[:, -1])
        logits = self._taken(ids, end, all_positions or trailing)
        self.length = end
        return last_real(logits, np.asarray(valid)) if trailing else logits

    def _taken(self, ids: np.ndarray, end: int, all_positions: bool) -> np.ndarray:
        """Run `_step`; where the sequence outgrows the length at which all RoPE angles change, redo it from an empty cache."""
        if self._restart is None:
            return self._step(ids, self._mask[:, :end], all_positions)
        self._seen.append(ids)
        before, after = self._mask[:, : self.length].sum(1), self._mask[:, :end].sum(1)
        if not ((before <= self._restart) & (after > self._restart) & (before > 0)).any():
            return self._step(ids, self._mask[:, :end], all_positions)
        self._reset()
        self.length = 0
        whole = self._step(np.concatenate(self._seen, 1), self._mask[:, :end], all_positions)
        return whole[:, -ids.shape[1] :] if all_positions else whole

    def source(self, ids: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Run an encoder–decoder model's encoder on a text; `forward` then decodes, from the start.

        ids: int64 [B, M]; valid: int64 [B, M], 0 where padded, None when nothing is.

        Raises:
            InputError: an id outside the vocabulary, another batch size, or more tokens than the model has positions.
        """
        check_ids(ids, self.spec.vocab)
        if ids.shape[1] > self.spec.context or ids.shape[0] != self._mask.shape[0]:
            raise InputError(
                f"source ids of shape {list(ids.shape)} do not fit: the session was opened for batches of"
                f" {self._mask.shape[0]}, and the model has {self.spec.context} positions"
            )
        self._source(ids, np.ones_like(ids) if valid is None else valid)
        self.reset()
        self._read = True

    def encode(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run an encoder on `input_ids`, `attention_mask` and, if it has them, `token_type_ids`, all int64 [B, T].

        Raises:
            InputError: see `checked_encoder_inputs`.
        """
        return self._encode(checked_encoder_inputs(self.spec, inputs))

    def tokens(self, prompt: list[int], count: int, sampling: Sampling) -> Iterator[int]:
        """Generate `count` tokens after a prompt, one by one. The session is reset before and afterwards.

        Raises:
            InputError: another generation of this session started meanwhile.
        """
        self._turn += 1
        turn = self._turn
        self.reset()
        try:
            by_steps = sampling.rules is not None or self._restart is not None
            chosen = (self._by_rules if by_steps else self._tokens)(prompt, count, sampling)
            for token in _faultless(self, chosen):
                yield token
                if turn != self._turn:
                    raise InputError(
                        "this session has started another generation; open a second session to run two at once"
                    )
        finally:
            if turn == self._turn:
                self.reset()

    def _tokens(self, prompt: list[int], count: int, sampling: Sampling) -> Iterator[int]:
        """Choose tokens from `forward`'s logits. A runtime that can sample on its device, ahead of the reader, overrides this."""
        rng = np.random.default_rng(sampling.seed)
        logits = self.forward(np.array([prompt], np.int64))[0]
        for i in range(count):
            token = choose(logits, sampling, rng)
            yield token
            if i + 1 < count:
                logits = self.forward(np.array([[token]], np.int64))[0]

    def _by_rules(self, prompt: list[int], count: int, sampling: Sampling) -> Iterator[int]:
        """Choose tokens where rules change the logits or the cache may have to be rebuilt: no runtime's own loop does that."""
        rng, ids, rules = np.random.default_rng(sampling.seed), list(prompt), sampling.rules or Rules()
        logits = self.forward(np.array([prompt], np.int64))[0]
        for i in range(count):
            check_logits(logits)
            token = choose(rules.apply(logits, ids, len(prompt), len(prompt) + count), sampling, rng)
            ids.append(token)
            yield token
            if i + 1 < count:
                logits = self.forward(np.array([[token]], np.int64))[0]

    def text_of_tool(self) -> ToolText:
        """The runtime's own tokenizer, chat template and stop ids; none of them where it takes token ids only."""
        return ToolText("edgeformer")

    def excuses(self, text: str) -> bool:
        """Whether the runtime is known to encode a text to different ids, of which the export has warned."""
        return False

    def serve(self, prompt: list[int], gen: int) -> Served:
        """Ask a server for `gen` greedy tokens after a prompt. Called from several threads at once."""
        raise NotImplementedError

    def text(self, prompt: list[int], tokens: list[int]) -> str:
        """The text that a server would return if it generated these tokens after the prompt."""
        raise NotImplementedError

    def _step(self, ids: np.ndarray, mask: np.ndarray, all_positions: bool) -> np.ndarray:
        raise NotImplementedError

    def _source(self, ids: np.ndarray, mask: np.ndarray) -> None:
        raise NotImplementedError

    def _reset(self) -> None:
        """Clear the cache; by default there is none."""

    def _encode(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def profile(self, call: Callable[[], None], before: Callable[[], None] | None = None) -> list[Operation] | None:
        """Time per operation of a call that uses this session; None if this session can't be profiled.

        before: prepares the state that the call starts from; not counted.
        Profiling has overhead: shares of the total are meaningful, absolute times less so.
        """
        return None

    def peak_memory(self) -> dict[str, Any] | None:
        """Peak memory where another process does the work, and which counter it is from; None if this process does the work."""
        return None

    def peak_gpu_bytes(self) -> int | None:
        """Peak bytes on an accelerator by the runtime's own counter; None if there is none."""
        return None

    def facts(self) -> dict[str, Any]:
        """Facts about this session for its benchmark row (provider, nodes claimed, kernels)."""
        return {}


def _faultless(session: Session, tokens: Iterator[int]) -> Iterator[int]:
    """Tokens of a runtime's own loop; a fault in it is raised as `RuntimeFault`, with the runtime's name."""
    try:
        yield from tokens
    except BaseException as e:
        if not is_fault(e):
            raise
        raise RuntimeFault(fault(session, e)) from e


class Runtime(ABC):
    """One way to run a model."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        reasons = dict.fromkeys(("unavailable", "refuses", "declines", "declines_checkpoint"), str)
        answers = {
            "versions": lambda _: {},
            "takes": lambda _: False,
            "has": lambda _: False,
            "target": lambda _: "cpu",
            "compared": lambda _: (),
        }
        guard(cls, {"open": None, **reasons, **answers})

    opens: ClassVar[str]
    """The format it opens, one of `FORMATS`: a `checkpoint` (spec and weights) or an artefact."""
    also_opens: ClassVar[tuple[str, ...]] = ()
    """Artefact formats that it also opens, since they are checkpoints, too."""
    tasks: ClassVar[tuple[Task, ...]] = (Task.TEXT_GENERATION, Task.FEATURE_EXTRACTION)
    """Tasks of the models it runs; `EVERY_TASK` for all."""
    prefixes: ClassVar[bool] = False
    """Whether it runs prefix LMs."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions it needs; the first is the runtime itself."""
    extra: ClassVar[str] = ""
    """The extra of edgeformer that installs them."""
    variants: tuple[str, ...] = ()
    """Other ways to run it, chosen as `name:variant`."""
    served: ClassVar[bool] = False
    """Whether its sessions are clients of a server."""
    slow: bool = False
    """Whether it takes seconds per token on a model of real size; such models then skip it unless it is asked for."""
    ranked: ClassVar[bool] = True
    """Whether its rows are results (the null runtime's are not)."""
    timed: ClassVar[bool] = True
    """Whether its time is a result: a reference interpreter's rows are verified, and not ranked."""

    def takes(self, kind: str) -> bool:
        """Whether it opens this format."""
        return kind == self.opens or kind in self.also_opens

    def has(self, variant: str) -> bool:
        """Whether `name:variant` is valid."""
        return variant in self.variants

    def target(self, variant: str) -> str:
        """The ONNX target of `edgeformer export` that is made for this variant."""
        return "cpu"

    def compared(self, spec: Model) -> tuple[str, ...]:
        """The variants that a comparison of this model includes without being asked, besides the plain one."""
        return ()

    def declines(self, manifest: Manifest, variant: str) -> str | None:
        """None, or why it can't open an artefact of a format that it opens in general."""
        return None

    def unavailable(self) -> str | None:
        """None, or what is missing and the exact line that installs it."""
        from importlib.metadata import PackageNotFoundError, version

        for package in self.packages:
            try:
                version(package)
            except PackageNotFoundError:
                line = f'pip install "edgeformer[{self.extra}]"' if self.extra else f"pip install {package}"
                return f"the package {package} is not installed; {line}"
        return None

    def versions(self) -> dict[str, str]:
        """Versions of the packages in use."""
        from importlib.metadata import version

        return {package: version(package) for package in self.packages}

    def refuses(self, spec: Model, options: Options) -> str | None:
        """None, or why this runtime can't run this spec with these options."""
        if spec.task not in self.tasks:
            return f"it does not run {spec.task} models"
        if spec.prefixed and not self.prefixes:
            return "it has no `prefix_length` input, which prefix LMs need"
        return None

    def declines_checkpoint(self, loaded: LoadedModel) -> str | None:
        """None, or why it can't open this MODEL although it opens checkpoints in general."""
        return None

    @abstractmethod
    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        """Load a model; a Path for runtimes that open artefacts, a LoadedModel for those that open checkpoints."""
