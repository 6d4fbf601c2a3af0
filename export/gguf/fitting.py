"""Which of llama.cpp's architectures represents a spec: what its reader makes of the metadata has to be the same spec."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from edgeformer import discover
from edgeformer.checkpoint.gguf_archs._common import Architecture
from edgeformer.checkpoint.gguf_archs._rope import scaling_of
from edgeformer.checkpoint.loading import family
from edgeformer.errors import CheckpointError, ConfigError, ExportError, SpecError
from edgeformer.exporters.hf.config import Misfit, nearest
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.mlp import MLP
from edgeformer.layers.rope import Rope
from edgeformer.layers.rope_llama3 import Llama3Scaling
from edgeformer.models._config import HfConfig
from edgeformer.models._inverse import effective
from edgeformer.models._shape import Unmapped
from edgeformer.spec import Model, Node, tensors
from edgeformer.spec.derive import rebuilt
from edgeformer.spec.differences import comparable, differences, distance, listed
from edgeformer.weights.binding import stored_part
from edgeformer.weights.gguf_file import Draft
from edgeformer.weights.parts import Stack


@dataclass(frozen=True)
class Fitting:
    """An architecture of llama.cpp that represents a spec: its name, the file's metadata, its declarations, and notes."""

    name: str
    metadata: dict[str, Any]
    architecture: Architecture
    notes: list[str] = field(default_factory=list)


GELU_NOTE = (
    "llama.cpp computes GELU's tanh approximation where this model has the exact GELU: activations differ by up to 5e-4"
)


def architecture(spec: Model, prefer: str | None = None) -> Fitting:
    """The architecture of llama.cpp that represents the spec: what its reader makes of the metadata is the same spec.

    Where several do, the order is: the one of `prefer` (the model_type that the model came with), those of common families, the
    alphabet.

    Raises:
        ExportError: there is none; the message names the nearest, and what differs.
    """
    misfits: list[Misfit] = []
    fitting: list[tuple[tuple[bool, bool, str], Fitting]] = []
    for name, module in discover.each("edgeformer.checkpoint.gguf_archs"):
        with discover.sparing("edgeformer.checkpoint.gguf_archs", name):
            arch = discover.declared(module, "ARCHITECTURE", Architecture)
            called = arch.called or name
            try:
                metadata = arch.metadata(spec)
                config, again = _read_back(spec, called, metadata, arch)
            except (Unmapped, ConfigError, CheckpointError, SpecError) as e:
                misfits.append(Misfit.of(called, e))
                continue
            exact = bool(arch.compute) and _tanh(spec) != spec
            kept = arch.computed(spec)
            wanted, there = (comparable(effective(m)) for m in (_tanh(kept) if exact else kept, again))
            found = differences(wanted, comparable(effective(_tanh(again))) if exact else there)
            if found:
                misfits.append(Misfit(distance(found), f"{called}, which differs in {listed(found)}"))
                continue
            kind = str(config["model_type"])
            order = kind != prefer, not family(kind).common, called
            fitting.append((order, Fitting(called, metadata, arch, [GELU_NOTE] if exact else [])))
    if not fitting:
        raise ExportError(
            f"no architecture of llama.cpp that edgeformer writes can represent this model; the nearest is {nearest(misfits)}"
            + _way_out(spec, prefer)
        )
    return min(fitting, key=lambda f: f[0])[1]


def _read_back(spec: Model, name: str, metadata: dict[str, Any], arch: Architecture) -> tuple[dict[str, Any], Model]:
    """The config that the architecture's reader makes of a file of this metadata, and the spec that it describes."""
    kept = arch.computed(spec)
    names, shapes = arch.name_map(kept), {}
    for canonical, shape in tensors(kept).items():
        part = stored_part(names, canonical)
        assert not isinstance(part, Stack)  # no architecture splits a tensor
        shapes[part.name] = part.whole(shape)
    draft = Draft(name, metadata, shapes, arch.rope_factors(spec))
    config = arch.config(draft)
    reader = HfConfig(dict(config), f"the {name} GGUF of this spec")
    again = _as_said(arch.computed(family(reader.model_type).spec(reader)), spec)
    if unread := draft.unread():
        raise ConfigError(f"its reader doesn't read {', '.join(unread)}")
    return config, again


def _as_said(again: Model, spec: Model) -> Model:
    """The spec that was read back, with the RoPE scaling as the original says it, if its numbers are the same: a file has them in
    float32, and several settings of Llama 3's scaling have the same factors."""
    said = scaling_of(spec)

    def same(node: Node) -> Node:
        if said is None or not isinstance(node, Rope) or node.scaling is None:
            return node
        equal = _in_float32(node.scaling) == _in_float32(said)
        if isinstance(node.scaling, Llama3Scaling) and isinstance(said, Llama3Scaling):
            ours, theirs = (s.frequencies(node.dim, node.theta) for s in (said, node.scaling))
            equal = np.allclose(ours, theirs, rtol=1e-5)
        return replace(node, scaling=said) if equal else node

    return rebuilt(again, same)  # type: ignore[return-value]


def _in_float32(node: Node) -> Node:
    """The node with its numbers rounded to float32."""
    numbers = {
        f.name: tuple(map(np.float32, value)) if isinstance(value, tuple) else np.float32(value)
        for f in fields(node)
        if isinstance(value := getattr(node, f.name), (float, tuple))
    }
    return replace(node, **numbers)


def _tanh(spec: Model) -> Model:
    """The spec with GELU's tanh approximation in place of the exact GELU."""
    made = rebuilt(
        spec,
        lambda node: replace(node, act="gelu_tanh") if isinstance(node, (MLP, GLU)) and node.act == "gelu" else node,
    )
    assert isinstance(made, Model)
    return made


def _way_out(spec: Model, prefer: str | None) -> str:
    """What to do where an encoder's body would fit without its head; "" where it wouldn't."""
    if not isinstance(spec, Encoder) or (spec.mlm is None and spec.classifier is None):
        return ""
    try:
        architecture(replace(spec, mlm=None, classifier=None), prefer)
    except ExportError:
        return ""
    return "; --without-head writes the encoder without its head"
