"""Settings of a run, and the shapes it sweeps over."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import numpy as np

from edgeformer.inference.threads import physical_cores
from edgeformer.layers.encoder import Encoder
from edgeformer.measure.row import Shape
from edgeformer.spec import Model
from edgeformer.spec.task import Task
from edgeformer.verification.reference import sample_batch


@dataclass(frozen=True)
class Settings:
    """Settings of a run: each row runs `rounds` rounds with `threads` threads (default: all physical cores).

    Every combination of `prompts`, `gens` and `depths` (tokens), `batches` (sequences) and, for servers, `concurrency`
    (clients) is a shape; an encoder–decoder model's prompts are the texts that it encodes. `limit_s`: time limit of a row of
    one shape, in seconds. `twice`: run one row twice to measure the noise. `energy`: read the machine's energy counter, if any.
    `profile`: record a time breakdown. `text`: token ids to take prompts from instead of random ones (`text_name` names the
    text); the quality loss of quantization is measured on them.
    """

    prompts: tuple[int, ...] = (128,)
    gens: tuple[int, ...] = (64,)
    rounds: int = 5
    threads: int = field(default_factory=physical_cores)
    batches: tuple[int, ...] = (1,)
    depths: tuple[int, ...] = (0,)
    concurrency: tuple[int, ...] = (1,)
    seed: int = 0
    limit_s: float = 900.0
    twice: bool = True
    profile: bool = False
    energy: bool = True
    text: tuple[int, ...] = ()
    text_name: str | None = None

    def prompts_of(self, spec: Model, count: int, length: int) -> np.ndarray:
        """`count` different prompts, int64 [count, length]; a text that is too short is repeated."""
        if not self.text:
            avoid = spec.padding_id if isinstance(spec, Encoder) else None
            return sample_batch(spec.vocab, count, length, self.seed, avoid)
        return np.resize(np.array(self.text, np.int64), count * length).reshape(count, length)

    def shapes(self, spec: Model) -> list[Shape]:
        """Every combination; encoders generate nothing and have no depth, answers of encoder–decoder models have none either."""
        if spec.task == Task.FEATURE_EXTRACTION:
            return [Shape(prompt, 0, batch) for batch, prompt in product(self.batches, self.prompts)]
        if spec.task == Task.TEXT2TEXT_GENERATION:
            swept = product(self.batches, self.prompts, self.gens)
            return [Shape(prompt, gen, batch) for batch, prompt, gen in swept]
        swept = product(self.concurrency, self.batches, self.depths, self.prompts, self.gens)
        return [Shape(prompt, gen, batch, depth, clients) for clients, batch, depth, prompt, gen in swept]

    def longest(self, spec: Model) -> int:
        """The maximum number of tokens of one sequence; source and answer of an encoder–decoder model are two."""
        if spec.task == Task.TEXT2TEXT_GENERATION:
            return max(max(shape.prompt, shape.gen + 1) for shape in self.shapes(spec))
        return max(shape.capacity for shape in self.shapes(spec))
