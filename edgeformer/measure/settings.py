"""What a run asks of every row, and the shapes that it sweeps over."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import numpy as np

from edgeformer.errors import InputError
from edgeformer.inference.threads import physical_cores
from edgeformer.measure.row import Shape
from edgeformer.spec import Model
from edgeformer.spec.task import Task
from edgeformer.verification.reference import sample_batch


@dataclass(frozen=True)
class Settings:
    """What every row runs: `gens` decode steps after its prompt, `rounds` times, with `threads` threads (all physical cores).

    Every combination of `prompts`, `gens` and `depths` (tokens), `batches` (sequences) and, for servers, `concurrency`
    (clients) makes a row. `limit_s` is what a row of one shape may take in all. `twice`: run one row twice, to tell noise from
    difference. `energy`: read the machine's counter where it has one. `profile`: say where time goes. `text`: token ids that
    prompts are taken from, instead of random ones (`text_name` says what text): what quantization costs is told for them.
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

    def prompts_of(self, vocab: int, count: int, length: int) -> np.ndarray:
        """`count` different prompts, int64 [count, length]; texts that are too short start again."""
        if not self.text:
            return sample_batch(vocab, count, length, self.seed)
        return np.resize(np.array(self.text, np.int64), count * length).reshape(count, length)

    def shapes(self, spec: Model) -> list[Shape]:
        """Every combination; encoders generate nothing and have no depth.

        Raises:
            InputError: an encoder–decoder model.
        """
        if spec.task == Task.TEXT2TEXT_GENERATION:
            raise InputError(
                "encoder–decoder models are exported, verified and generated from, and not measured: a row would need a text to"
                " read besides the one to write"
            )
        if spec.task != Task.TEXT_GENERATION:
            return [Shape(prompt, 0, batch) for batch, prompt in product(self.batches, self.prompts)]
        swept = product(self.concurrency, self.batches, self.depths, self.prompts, self.gens)
        return [Shape(prompt, gen, batch, depth, clients) for clients, batch, depth, prompt, gen in swept]

    def longest(self, spec: Model) -> int:
        """The most tokens that one sequence comes to."""
        return max(shape.capacity for shape in self.shapes(spec))
