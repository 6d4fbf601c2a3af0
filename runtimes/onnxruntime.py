"""ONNX Runtime on an exported artefact. A variant names another execution provider;
`kernels` loads edgeformer's native kernel library.

Decoders whose attention appends in place (manifest: `"cache": "shared"`) run through one IOBinding with a single
full-length buffer per key and per value, bound as past and present. Others feed each step's outputs to the next.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.backends.native.library import LIBRARY, load_library
from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.checkpoint.manifest import Manifest
from edgeformer.errors import ArtefactError
from edgeformer.files.limits import MAX_SIZE
from edgeformer.files.quoting import shown
from edgeformer.files.scratch import temporary_folder
from edgeformer.inference import runtime as base
from edgeformer.inference.inputs import check_no_hole, check_padded_left
from edgeformer.inference.runtime import Options, Session
from edgeformer.runtimes._onnx_encoder_decoder import OnnxEncoderDecoderSession
from edgeformer.runtimes._onnx_providers import CPU, KNOWN, TARGETS, built_in, claims, missing, operations, plugins, use

_WINDOWED = (1, 29)
"""The first release whose GroupQueryAttention has windowed KV caches."""
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


def open_onnx(folder: Path, manifest: Manifest, options: Options, profile: Path | None = None) -> Any:
    """Open an `onnxruntime.InferenceSession` on an artefact, with explicit threads; it profiles to `profile` if given."""
    import onnxruntime

    release = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if "cache_windows" in manifest and release < _WINDOWED:
        raise ArtefactError(
            f"{folder} has windowed KV caches, which ONNX Runtime knows from 1.29 on, and this is {onnxruntime.__version__}:"
            " pip install -U onnxruntime, or export without --windowed-cache"
        )
    file, settings = bundle.model_files(folder, manifest)[0], onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
    settings.log_severity_level = 3
    if (
        "encoder_file" in manifest
    ):  # two sessions have two pools, and one would keep its threads spinning while the other works
        settings.add_session_config_entry("session.force_spinning_stop", "1")
    outside = {str(Path(e["path"]).parent) for e in manifest["linked"].values() if not e["hard_link"]}
    if outside:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", outside.pop())
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
    if options.variant == "kernels":
        if manifest["compute"] != "fp32" and not manifest.get("one_node"):
            raise ArtefactError(
                f"the native kernels of single ops compute in fp32, but {folder} in {manifest['compute']}; leave out :kernels"
            )
        settings.register_custom_ops_library(str(LIBRARY.path()))
    providers = use(options.variant, settings)
    try:
        return onnxruntime.InferenceSession(str(file), settings, providers=providers or None)
    except Exception as e:  # onnxruntime raises plain RuntimeErrors of many kinds
        raise ArtefactError(f"ONNX Runtime can't load {file}: {str(e).splitlines()[0]}") from e


class OnnxSession(Session):
    """A decoder or encoder in ONNX Runtime."""

    def __init__(self, folder: Path, options: Options):
        import onnxruntime

        manifest = bundle.opened(folder)
        super().__init__(bundle.read_spec(folder), options)
        self.capacity = min(self.capacity, manifest["context"] or self.capacity)
        self.folder, self.manifest, self.runs = folder, manifest, 0
        self.onnxruntime, self.session = onnxruntime, open_onnx(folder, manifest, options)
        provider = self.session.get_providers()[0]
        # only CUDA's cache is kept on the device; other accelerators' caches are copied both ways at every step
        self.device = "cuda" if provider == "CUDAExecutionProvider" else "cpu"
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.past = [n for n in self.inputs if n.startswith("past_key_values.")]
        # other providers copy the buffers to their device, where past and present are separate
        self.shared = manifest.get("cache") == "shared" and provider in (CPU, "CUDAExecutionProvider")
        self.windowed = "cache_windows" in manifest
        if self.windowed and not (self.shared and provider == CPU):
            raise ArtefactError(
                f"{folder} has windowed KV caches, which only ONNX Runtime's CPU execution provider runs, not {provider}; export"
                " it without --windowed-cache"
            )
        if wrong := [w for w in manifest.get("cache_windows", {}).values() if not 0 < w <= MAX_SIZE]:
            raise ArtefactError(
                f"{folder} is damaged: its manifest has a KV cache of {shown(wrong[0])} positions; export again"
            )
        self.value = onnxruntime.OrtValue.ortvalue_from_numpy
        if self.past:
            self.keep = {n: self.value(np.array([n], np.int64)) for n in (0, 1)}
            # One position's logits and one token's ids always have these shapes: one buffer each, and a view to copy
            # through, because a step evicts the CPU caches and every call into the runtime's bindings then costs time.
            self.logits = self.value(np.zeros((options.batch, 1, self.spec.vocab), np.float32))
            self.token = self.value(np.zeros((options.batch, 1), np.int64))
            self.logits_view, self.token_view = self.logits.numpy(), self.token.numpy()
            self._bind()

    def _bind(self) -> None:
        self.binding = self.session.io_binding()
        self.bound: tuple[bool, bool] | None = None  # (one token in, all positions out) of the step before
        self.caches: dict[str, Any] = {}
        for name in self.past:
            node = self.inputs[name]
            length = self._slots(name) if self.shared else 0
            shape = (self.options.batch, node.shape[1], length, node.shape[3])
            cache = self.value(np.zeros(shape, _FLOATS[node.type]), self.device, 0)
            self.caches[name] = cache
            self.binding.bind_ortvalue_input(name, cache)
            if self.shared:
                self.binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cache)

    def _slots(self, name: str) -> int:
        """The length of a shared cache's buffer."""
        window = self.manifest.get("cache_windows", {}).get(name.split(".")[1])
        return self.capacity if window is None else window

    def _step(self, ids, mask, all_positions):
        if self.length == 0 and ids.shape[0] * ids.shape[1] > 1:
            check_no_hole(mask)
        elif self.windowed:
            check_padded_left(mask)
        new = ids.shape[1]
        if self.shared and self.length and new > 1 and ids.shape[0] > 1:
            # GroupQueryAttention can continue a batch only one token at a time
            parts = [self._run(ids[:, i : i + 1], mask[:, : self.length + i + 1], True) for i in range(new)]
            logits = np.concatenate(parts, 1)
            return logits if all_positions else logits[:, -1]
        logits = self._run(ids, mask, all_positions)
        return logits if all_positions else logits[:, -1]

    def _run(self, ids: np.ndarray, mask: np.ndarray, all_positions: bool) -> np.ndarray:
        binding, single = self.binding, ids.shape[1] == 1
        if single:
            self.token_view[...] = ids
        else:
            binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids, np.int64))
        binding.bind_cpu_input("attention_mask", np.ascontiguousarray(mask, np.int64))
        if self.prefix is not None:
            binding.bind_cpu_input("prefix_length", np.ascontiguousarray(self.prefix, np.int64))
        if "position_ids" in self.inputs:
            positions = np.clip(mask.cumsum(1) - 1, 0, None)[:, -ids.shape[1] :]
            binding.bind_cpu_input("position_ids", np.ascontiguousarray(positions, np.int64))
        if self.bound != (single, all_positions) or all_positions:
            if single:
                binding.bind_ortvalue_input("input_ids", self.token)
            binding.bind_ortvalue_input("num_logits_to_keep", self.keep[0 if all_positions else 1])
            if all_positions:
                binding.bind_output("logits")
            else:
                binding.bind_ortvalue_output("logits", self.logits)
            self.bound = single, all_positions
        if not self.shared:
            for name in self.outputs[1:]:
                binding.bind_output(name, self.device)
        self.runs += 1
        self.session.run_with_iobinding(binding)
        # `numpy()` is a view of a buffer that the next step overwrites or frees, so logits are copied out.
        # Outputs come back in the order they were bound: shared caches before the logits, growing ones after.
        if self.shared:
            return (binding.get_outputs()[-1].numpy() if all_positions else self.logits_view).copy()
        outputs = binding.get_outputs()
        for name, value in zip(self.outputs[1:], outputs[1:], strict=True):
            past = name.replace("present", "past_key_values")
            self.caches[past] = value
            binding.bind_ortvalue_input(past, value)
        return outputs[0].numpy().copy()

    def _reset(self):
        if not self.shared and self.past:
            self._bind()

    def _encode(self, inputs):
        feed = {k: np.ascontiguousarray(v, np.int64) for k, v in inputs.items() if k in self.inputs}
        if "token_type_ids" in self.inputs and "token_type_ids" not in feed:
            feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
        self.runs += 1
        return dict(zip(self.outputs, self.session.run(None, feed), strict=True))

    @property
    def file(self) -> Path:
        """The ONNX file."""
        return bundle.model_files(self.folder, self.manifest)[0]

    def profile(self, call, before=None):
        """Profiled by ONNX Runtime's own profiler, in a second session."""
        plain = self.session
        with temporary_folder() as scratch:
            self.session = open_onnx(self.folder, self.manifest, self.options, scratch / "profile")
            if self.past:
                self._bind()
            start = self.runs
            if before is not None:
                before()
            skip = self.runs - start
            call()
            made = operations(Path(self.session.end_profiling()), self.file, skip)
        self.session = plain
        if self.past:
            self._bind()
            self.reset()
        return made

    def facts(self):
        provider = self.session.get_providers()[0]
        past = self.inputs[self.past[0]].type if self.past else ""
        return {
            "provider": provider,
            "device": "cpu" if provider == CPU else "gpu",
            "cache": "shared" if self.shared else "growing",
            "cache_device": self.device,
            "kv": {"tensor(float)": "fp32", "tensor(float16)": "fp16", "tensor(int8)": "int8"}.get(past),
            "weights_mmap": False,
            **claims(self.file, self.session, self.spec),
            **({"isa": load_library().isa()} if self.options.variant == "kernels" else {}),
        }


class Runtime(base.Runtime):
    """ONNX Runtime, CPU execution provider by default. Variants are the other providers of the installation, and `kernels`."""

    tasks = base.EVERY_TASK
    prefixes = True
    opens = "onnx"
    packages = ("onnxruntime",)

    @property
    def variants(self) -> tuple[str, ...]:  # type: ignore[override]
        """The native kernels, and the installed execution providers."""
        return ("kernels", *sorted({*built_in(), *plugins()}))

    def has(self, variant):
        return variant in (*self.variants, *KNOWN)

    def target(self, variant):
        return TARGETS.get(variant, "cpu")

    def compared(self, spec):
        """The native library, where it takes the whole step."""
        from edgeformer.exporters.onnx.one_node import covered

        return () if LIBRARY.missing() is not None or isinstance(covered(spec), str) else ("kernels",)

    def declines(self, manifest, variant):
        """Build the library, if necessary, before anything is measured."""
        if variant != "kernels":
            return None
        if manifest["compute"] != "fp32" and not manifest.get("one_node"):
            return (
                "the native library has no kernel for this model's whole step, and those of single ops compute in fp32"
            )
        return LIBRARY.cannot_be_built()

    def refuses(self, spec, options):
        if options.variant not in ("", "kernels") and (reason := missing(options.variant)) is not None:
            return reason
        return super().refuses(spec, options)

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        assert isinstance(source, Path)
        if (source / bundle.MANIFEST).exists() and "encoder_file" in (manifest := bundle.read_manifest(source)):
            bundle.opened(source)
            return OnnxEncoderDecoderSession(source, manifest, options, lambda m: open_onnx(source, m, options))
        return OnnxSession(source, options)
