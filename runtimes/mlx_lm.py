"""mlx-lm on a folder that edgeformer exported for it, with mlx-lm's own model code, caches and generation loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.companions.files import read_object
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import InputError
from edgeformer.exporters.mlx.exporter import CODE_NAME, MODEL_FILE
from edgeformer.inference import runtime as base
from edgeformer.inference.runtime import Options, Session
from edgeformer.inference.text import ToolText
from edgeformer.layers.rope import length_dependent
from edgeformer.ops.sampling import Sampling, check_logits
from edgeformer.runtimes.mlx import back_end_missing, exact_float32, has_gpu
from edgeformer.spec.task import Task


class MlxLmSession(Session):
    """The model as `mlx_lm.load` builds it. MLX has no option for the number of CPU threads.

    Without a GPU the same weights are used in float32 arithmetic: on CPU, MLX also sums half precision in half precision.
    """

    def __init__(self, folder: Path, options: Options):
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache
        from mlx_lm.utils import load_model

        manifest = bundle.opened(folder, {CODE_NAME: MODEL_FILE})
        options = replace(options, capacity=min(options.capacity or manifest["context"], manifest["context"]))
        super().__init__(bundle.read_spec(folder), options)
        self.folder = folder
        # the code that model_file names was checked: it is edgeformer's own, or trusted by the user
        brings_code = "model_file" in read_object(folder / "config.json")
        self.model: Any = load_model(folder, trust_remote_code=brings_code)[0]
        if mx.default_device() != mx.gpu:
            self.compute = "fp32"
            self.model.set_dtype(mx.float32)
        self.mx, self._make_cache = mx, make_prompt_cache
        self._reset()

    def _reset(self):
        self.cache = self._make_cache(self.model)

    def _step(self, ids, mask, all_positions):
        if not mask.all():
            raise InputError("this adapter runs mlx-lm without padding; use the runtime mlx for padded batches")
        mx, tokens = self.mx, self.mx.array(ids.astype(np.int32))
        # as in its generate_step: only the last token goes through the head
        if not all_positions and ids.shape[1] > 1 and not length_dependent(self.spec):
            self.model(tokens[:, :-1], cache=self.cache)
            mx.eval([c.state for c in self.cache])
            tokens = tokens[:, -1:]
        y = np.array(self.model(tokens, cache=self.cache).astype(mx.float32))
        return y if all_positions else y[:, -1]

    def _tokens(self, prompt: list[int], count: int, sampling: Sampling) -> Iterator[int]:
        from mlx_lm.generate import generate_step
        from mlx_lm.sample_utils import make_sampler

        if sampling.seed is not None:
            self.mx.random.seed(sampling.seed)
        sampler = make_sampler(sampling.temperature, sampling.top_p, sampling.min_p, top_k=sampling.top_k)
        steps = generate_step(
            self.mx.array(prompt), self.model, max_tokens=count, sampler=sampler, prompt_cache=self.cache
        )
        for i, (token, probabilities) in enumerate(steps):
            if i % 16 == 0:  # not every step: the check would stall its loop
                check_logits(np.array(probabilities.astype(self.mx.float32)))
            yield int(token)

    def text_of_tool(self):
        from mlx_lm.tokenizer_utils import load as load_wrapper

        if not any(self.folder.glob("tokenizer*")):
            return ToolText("mlx-lm")
        told = read_object(self.folder / "config.json").get("eos_token_id")
        tokenizer: Any = load_wrapper(self.folder, {"trust_remote_code": False}, eos_token_ids=told)

        def render(messages):
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

        return ToolText(
            "mlx-lm",
            lambda text: tokenizer.encode(text, add_special_tokens=False),
            tokenizer.encode,
            render if tokenizer.has_chat_template else None,
            frozenset(tokenizer.eos_token_ids),
        )

    def facts(self):
        kv = self.compute or bundle.read_manifest(self.folder)["compute"]
        return {"device": self.mx.default_device().type.name, "compute": self.compute, "kv": kv}

    def peak_gpu_bytes(self):
        return self.mx.get_peak_memory() if self.mx.default_device() == self.mx.gpu else None


class Runtime(base.Runtime):
    """mlx-lm."""

    opens = "mlx"
    tasks = (Task.TEXT_GENERATION,)
    packages = ("mlx-lm", "mlx")
    extra = "mlx-lm"

    @property
    def slow(self) -> bool:  # type: ignore[override]
        """Same as the runtime mlx."""
        return not has_gpu()

    def unavailable(self) -> str | None:
        return super().unavailable() or back_end_missing()

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        exact_float32()
        assert isinstance(source, Path)
        return MlxLmSession(source, options)
