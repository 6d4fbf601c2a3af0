"""The process that runs one row: `python -m edgeformer.measure.worker`. Reads one JSON command per line, writes one answer each.

Everything a runtime prints goes to stderr; answers go to the original stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import LoadedModel, load
from edgeformer.errors import EdgeformerError
from edgeformer.files.trust import grant
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options, Session
from edgeformer.measure import energy
from edgeformer.measure.blocks import profiled
from edgeformer.measure.memory import peak_memory
from edgeformer.measure.roofline import measure_rates
from edgeformer.measure.timed import Round, decoder_round, encoder_round, served_round, warm_up
from edgeformer.spec.task import Task
from edgeformer.verification import parity
from edgeformer.verification.reference import Reference, continuation, reference_runtime
from edgeformer.verification.weight_checks import check_weights as weight_check


class Request(TypedDict):
    """What a round runs: each sequence's prompt, tokens to decode, tokens to put into the KV cache before."""

    prompt: list[list[int]]
    gen: int
    depth: int


class Worker:
    """State of one row."""

    session: Session

    def open(self, runtime: str, source: str, opens: str, load_options: dict, options: dict) -> dict[str, Any]:
        """Load the model; return the load time, versions and facts."""
        made, variant = require(runtime)
        t0 = time.perf_counter()
        target: Path | LoadedModel = load(source, **load_options) if opens == "checkpoint" else Path(source)
        self.session = made.open(target, Options(**options, variant=variant))
        seconds = time.perf_counter() - t0
        if isinstance(target, LoadedModel):
            digest = target.weights_digest() if target.weights is not None else None
        else:  # an external plug-in runtime may open folders that aren't our artefacts
            there = (target / bundle.MANIFEST).exists()
            digest = bundle.read_manifest(target)["weights_digest"] if there else None
        facts = {"weights_digest": digest, **self.session.facts()}
        return {"load_s": seconds, "versions": made.versions(), "facts": facts}

    def rates(self, threads: int, sizes: list[int]) -> dict[str, Any]:
        """This machine's peak rates."""
        return measure_rates(threads, sizes)

    def reference(
        self,
        source: str,
        load_options: dict,
        precision: str,
        threads: int,
        file: str,
        prompt: list[list[int]],
        gen: int,
        depth: int,
        original: str,
        original_options: dict,
        check_weights: bool = False,
    ) -> dict[str, Any]:
        """Compute the expected outputs of this shape's rows, and save them for the other processes.

        original: the model that a quantized `source` must have been made from; `check_weights` compares its weights.
        For decoders, also measures how far the outputs of rounded or quantized weights are from the original's on these prompts.
        """
        loaded, weights, quality = load(source, **load_options), None, {}
        if check_weights:
            weights = asdict(weight_check(loaded, load(original, **original_options)))
        ids = np.array(prompt, np.int64)
        if loaded.spec.task != Task.FEATURE_EXTRACTION:
            made = continuation(loaded, ids, gen, precision=precision, threads=threads, depth=depth)
            arrays = {k: v for k, v in vars(made).items() if k != "runtime" and v is not None}
            name = made.runtime
            quality = {"kl_mean": 0.0, "top1": 1.0}
            if check_weights or precision != "fp32":
                judged = parity.distance(load(original, **original_options), made, threads)
                quality = {"kl_mean": judged.kl_mean, "top1": judged.top1}
        else:
            name = reference_runtime()
            inputs = parity.encoder_inputs(loaded.spec, ids.shape[1], rows=max(len(ids), 3))
            session = require(name)[0].open(loaded, Options(threads=threads, precision=precision))
            arrays = {f"in.{k}": v for k, v in inputs.items()} | session.encode(inputs)
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return {"runtime": name, "weights": weights, "quality": quality}

    def check(self, file: str, compute: str, reference: str) -> dict[str, Any]:
        """Compare this row's outputs with the reference's."""
        with np.load(file) as data:
            arrays = dict(data)
        compute = self.session.compute or compute
        if self.session.spec.task != Task.FEATURE_EXTRACTION:
            fields: dict[str, Any] = {k: v if v.ndim else int(v) for k, v in arrays.items()}
            made = Reference(reference, **fields)
            checks = parity.check_server if self.session.served else parity.check_decoder
            found = checks(self.session, made, compute)
        else:
            inputs = {k[3:]: v for k, v in arrays.items() if k.startswith("in.")}
            expected = {k: v for k, v in arrays.items() if not k.startswith("in.")}
            found = parity.check_encoder(self.session, inputs, expected, compute)
        return {"verdict": parity.overall(found), "checks": [asdict(c) for c in found]}

    def _run(self, prompt: list[list[int]], gen: int, depth: int = 0, cold: bool = False) -> Round:
        if self.session.served:
            return served_round(self.session, prompt, gen)
        ids = np.array(prompt, np.int64)
        if self.session.spec.task != Task.FEATURE_EXTRACTION:
            return decoder_round(self.session, ids, gen, depth, cold=cold)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return encoder_round(self.session, inputs)

    def warmup(self, **request: Unpack[Request]) -> dict[str, Any]:
        """Run the warm-up; return its rounds, and whether they settled."""
        rounds, settled = warm_up(lambda: self._run(**request))
        return {"rounds": [asdict(r) for r in rounds], "settled": settled}

    def round(self, cold: bool = False, **request: Unpack[Request]) -> dict[str, Any]:
        """Run one round; the first one of a process measures the cold start."""
        return asdict(self._run(**request, cold=cold))

    def memory(self) -> dict[str, Any]:
        """Peak bytes so far: resident, and on the accelerator if the runtime counts them."""
        return (self.session.peak_memory() or peak_memory()) | {"peak_gpu_bytes": self.session.peak_gpu_bytes()}

    def blocks(self, **request: Unpack[Request]) -> dict[str, Any]:
        """Time breakdown of a prefill and of a decode step, by kind of block."""
        return profiled(self.session, np.array(request["prompt"], np.int64), request["depth"])

    def energy(self, window_s: float, **request: Unpack[Request]) -> dict[str, Any]:
        """Energy per prefill and per round's decode steps, from the machine's own counter."""
        fill, depth = None, request["depth"]
        no_decoding = Request(prompt=request["prompt"], gen=0, depth=depth)
        if depth:
            before = Request(prompt=[ids[:depth] for ids in request["prompt"]], gen=0, depth=0)
            fill = lambda: self._run(**before, cold=True)  # noqa: E731
        return energy.of_rounds(
            lambda: self._run(**no_decoding, cold=True),
            lambda: self._run(**request, cold=True),
            window_s,
            fill=fill,
        )


def main() -> None:
    """Answer commands until stdin closes. The arguments are the digests of files that may run as code."""
    grant(sys.argv[1:])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            result = {"ok": getattr(worker, command["do"])(**command["with"])}
        except EdgeformerError as e:
            result = {"error": str(e)}
        except Exception as e:  # a crash of one runtime is a row of the table, not the end of the run
            import traceback

            traceback.print_exc()
            result = {"error": f"{type(e).__name__}: {e}"}
        answers.write(json.dumps(result) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
