"""Reference outputs of the original: one full pass, a cached run and a greedy continuation of a prompt, in float32.

The reference runs the same spec and weights in torch, or in numpy if torch isn't installed, with weights rounded to the
artefact's precision, so that a comparison tests the runtime and the export, not the choice of precision. The rows of a batch are
computed one by one, so they can't affect each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options, Session
from edgeformer.layers.rope import length_dependent
from edgeformer.spec.task import Task

LONGEST_PASS = 512
"""Longer sequences are compared only through the KV cache: logits of every position take too much memory."""


@dataclass
class Reference:
    """A decoder's reference outputs. ids: int64 [B, T]; logits: float32 [B, T - start, V] of one pass, from position `start` on.

    A cached run feeds `depth` ids (none if 0), then those up to `prefill`, then one at a time. tokens: the greedy continuation
    of the first `prompt` ids, [B, G]; margins: each token's logit minus the second best, [B, G]. cached: logits
    [B, T - prefill + 1, V] of a prefill and single steps, only for length-dependent RoPE, where they differ from one pass. read:
    int64 [B, M], the texts that an encoder–decoder model encodes.
    """

    runtime: str
    ids: np.ndarray
    logits: np.ndarray
    start: int
    prefill: int
    prompt: int
    tokens: np.ndarray
    margins: np.ndarray
    cached: np.ndarray | None = None
    depth: int = 0
    read: np.ndarray | None = None

    def expected_cached(self) -> np.ndarray:
        """Expected logits [B, T - prefill + 1, V] of a cached run."""
        return self.logits[:, self.prefill - 1 - self.start :] if self.cached is None else self.cached


def reference_runtime() -> str:
    """`torch` if it is installed, else `numpy`."""
    return "torch" if get("torch")[0].unavailable() is None else "numpy"


def sample_ids(vocab: int, count: int, seed: int = 0, avoid: int | None = None) -> np.ndarray:
    """Random token ids int64 [count] from a seed, without the id `avoid`."""
    ids = np.random.default_rng(seed).integers(0, vocab, count)
    return ids if avoid is None else np.where(ids == avoid, (avoid + 1) % vocab, ids)


def sample_batch(vocab: int, batch: int, count: int, seed: int = 0, avoid: int | None = None) -> np.ndarray:
    """Random token ids int64 [batch, count]; rows differ, and the first equals `sample_ids`."""
    return np.stack([sample_ids(vocab, count, seed + row, avoid) for row in range(batch)])


def make_reference(
    loaded: LoadedModel,
    ids: np.ndarray,
    *,
    precision: str,
    threads: int,
    prompt: int,
    generate: int,
    read: np.ndarray | None = None,
    prefix: int | None = None,
) -> Reference:
    """Run one pass over `ids` int64 [T], and generate `generate` greedy tokens after its first `prompt` ids. `read` int64 [1, M]
    is the encoder input of an encoder–decoder model, `prefix` the bidirectional prefix length of a prefix LM."""
    name = reference_runtime()
    capacity = max(len(ids), prompt + generate)
    session = require(name)[0].open(loaded, Options(threads=threads, capacity=capacity, precision=precision))
    session.prefix_length = prefix
    if read is not None:
        session.source(read)
    logits = session.forward(ids[None], all_positions=True)
    tokens, margins = greedy(session, ids[None, :prompt], generate)
    prefill = max(len(ids) // 2, 1)
    cached = run_cached(session, ids[None], prefill) if length_dependent(loaded.spec) else None
    return Reference(name, ids[None], logits, 0, prefill, prompt, tokens, margins, cached)


def continuation(
    loaded: LoadedModel, prompt: np.ndarray, generate: int, *, precision: str, threads: int, depth: int = 0
) -> Reference:
    """Compute the reference of prompts int64 [B, P] and their greedy continuations, the workload of a benchmark row.

    The first `depth` of the P ids are in the KV cache before timing starts. An encoder–decoder model encodes the prompts, and
    answers from its start token on.
    """
    name = reference_runtime()
    read = prompt if loaded.spec.task == Task.TEXT2TEXT_GENERATION else None
    prompt = prompt if read is None else start_tokens(len(prompt))
    count = prompt.shape[1]
    session = require(name)[0].open(loaded, Options(threads=threads, capacity=count + generate, precision=precision))
    start = 0 if count + generate <= LONGEST_PASS else count - 1
    split = length_dependent(loaded.spec)
    rows = []
    for n, row in enumerate(prompt[:, None]):
        if read is not None:
            session.source(read[n : n + 1])
        tokens, margins = greedy(session, row, generate)
        ids = np.concatenate([row, tokens], 1)
        session.reset()
        if start == 0:
            logits = session.forward(ids, all_positions=True)
        else:
            logits = run_cached(session, ids, count)
        cached = run_cached(session, ids, count, depth) if split else None
        rows.append((ids, logits, tokens, margins, cached))
    ids, logits, tokens, margins = (np.concatenate([row[i] for row in rows]) for i in range(4))
    cached = np.concatenate([row[4] for row in rows]) if split else None
    return Reference(name, ids, logits, start, count, count, tokens, margins, cached, depth, read)


def start_tokens(batch: int) -> np.ndarray:
    """The first decoder tokens of a measured answer, int64 [batch, 1]: id 0, since no time depends on which one it is."""
    return np.zeros((batch, 1), np.int64)


def run_cached(session: Session, ids: np.ndarray, prefill: int, depth: int = 0) -> np.ndarray:
    """Logits [B, T - prefill + 1, V] of a prefill's last token (with `depth` ids fed before it) and of single steps."""
    session.reset()
    if depth:
        session.forward(ids[:, :depth])
    rows = [session.forward(ids[:, depth:prefill])]
    return np.stack(rows + [session.forward(ids[:, i : i + 1]) for i in range(prefill, ids.shape[1])], 1)


def greedy(session: Session, prompt: np.ndarray, count: int, depth: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Generate `count` greedy tokens after prompts [B, P]; return them and their margins over the second best,
    both [B, count].
    """
    session.reset()
    if depth:
        session.forward(prompt[:, :depth])
    logits = session.forward(prompt[:, depth:])
    tokens, margins = [], []
    for i in range(count):
        best = np.partition(logits, -2, axis=-1)
        tokens.append(logits.argmax(-1))
        margins.append(best[:, -1] - best[:, -2])
        if i + 1 < count:
            logits = session.forward(tokens[-1][:, None])
    return np.stack(tokens, 1).astype(np.int64), np.stack(margins, 1).astype(np.float64)
