"""Contracts between parts: what behaviour depends on is declared, not read from a field's name or a message's words."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from support import STDLIB, load, random_ids, small_spec

from edgeformer.errors import SpecError
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.spec import Layer, Node, SharedKV, Sub, tensors


@dataclass(frozen=True, kw_only=True)
class Tagged(GQA):
    """Attention of a plug-in that has fields of its own under names that other layers use."""

    kind: ClassVar[str] = "tagged"
    source: str = "wikipedia"
    shares: str = "nothing"


@dataclass(frozen=True, kw_only=True)
class Renamed(Layer):
    """Attention whose position scheme and mask are fields of other names."""

    kind: ClassVar[str] = "renamed"
    inner: GQA
    turns: Rope
    sees: Mask = Mask()

    def params(self, width: int) -> Any:
        return self._whole().params(width)

    def cache(self) -> dict[str, tuple[int, int]]:
        return self._whole().cache()

    def per_step(self) -> tuple[Node, ...]:
        return (self.turns, self.sees)

    def _whole(self) -> GQA:
        return replace(self.inner, position=self.turns, mask=self.sees)

    def apply(self, ops: Any, p: Any, x: Any, step: Any) -> Any:
        return self._whole().apply(ops, p, x, step)


def _with_attention(make: Any) -> Any:
    spec = small_spec(heads=4, kv_heads=2, head_dim=16)
    return spec, replace(spec, blocks=tuple(replace(b, attention=make(b.attention)) for b in spec.blocks))


def _logits(spec: Any, like: Any) -> Any:
    torch = pytest.importorskip("torch")
    from edgeformer.api import build_torch

    torch.manual_seed(0)
    model = build_torch(like).eval()
    other = build_torch(spec).eval()
    other.load_state_dict(model.state_dict())
    ids = torch.from_numpy(random_ids(like.vocab, 2, 9))
    with torch.no_grad():
        return model(ids).numpy(), other(ids).numpy()


def test_a_field_called_source_is_only_a_field():
    """Fields named `source` and `shares` made any layer a borrower or a lender of keys and values."""
    spec, tagged = _with_attention(lambda a: Tagged(**{f.name: getattr(a, f.name) for f in fields(a)}))
    ours, theirs = _logits(tagged, spec)
    assert (ours == theirs).all()


def test_positions_and_masks_are_declared_not_found_by_name():
    """Tables were computed for fields called `position` and `mask` only; a layer with other names had none."""
    spec, renamed = _with_attention(
        lambda a: Renamed(inner=replace(a, position=None, mask=Mask(causal=False)), turns=a.position, sees=a.mask)
    )
    ours, theirs = _logits(renamed, spec)
    assert (ours == theirs).all()


def test_what_per_step_may_give():
    class Odd(Node):
        kind: ClassVar[str] = "odd"

    @dataclass(frozen=True, kw_only=True)
    class Wrong(GQA):
        kind: ClassVar[str] = "wrong"

        def per_step(self) -> tuple[Node, ...]:
            return (Odd(),)

    with pytest.raises(SpecError, match="odd is neither"):
        _with_attention(lambda a: Wrong(heads=4, kv_heads=2, head_dim=16))


def test_a_mask_that_is_not_declared_is_refused():
    """A layer written when tables were found by fields' names would end in a KeyError in the middle of a forward pass."""

    @dataclass(frozen=True, kw_only=True)
    class Undeclared(GQA):
        kind: ClassVar[str] = "undeclared"

        def per_step(self) -> tuple[Node, ...]:
            return ()

    with pytest.raises(SpecError, match="undeclared has a mask that its per_step doesn't return"):
        _with_attention(lambda a: Undeclared(heads=4, kv_heads=2, head_dim=16))


def test_shared_keys_and_values_must_have_one_shape():
    @dataclass(frozen=True, kw_only=True)
    class Lender(GQA):
        kind: ClassVar[str] = "lender"

        def publishes(self) -> SharedKV:
            return SharedKV("a", 2, 16)

    @dataclass(frozen=True, kw_only=True)
    class Borrower(GQA):
        kind: ClassVar[str] = "borrower"

        def borrows(self) -> SharedKV:
            return SharedKV("a", 4, 16)

    spec = small_spec(heads=4, kv_heads=2, head_dim=16)
    block = spec.blocks[0]
    lends = replace(block, attention=Lender(heads=4, kv_heads=2, head_dim=16))
    takes = replace(block, attention=Borrower(heads=4, kv_heads=4, head_dim=16))
    with pytest.raises(SpecError, match="which no earlier block shares"):
        replace(spec, blocks=(takes, lends))
    with pytest.raises(SpecError, match="2 heads of 16 channels; it needs 4 of 16"):
        replace(spec, blocks=(lends, takes))


def test_the_former_place_of_the_runtime_protocol():
    from edgeformer.inference import runtime
    from edgeformer.runtimes import _protocol

    with pytest.warns(DeprecationWarning, match=r"edgeformer\.inference\.runtime"):
        assert _protocol.Runtime is runtime.Runtime
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = _protocol.no_such_name


@dataclass(frozen=True, kw_only=True)
class Mistyped(Layer):
    """Enters its child by a name that is no entry point: `ad` for `add`."""

    kind: ClassVar[str] = "mistyped"
    child: Layer

    def params(self, width: int) -> Any:
        return {"child": Sub(self.child, width)}

    def apply(self, ops: Any, p: Any, x: Any) -> Any:
        return p.child.ad(x, x)


def _numpy(layer: Layer) -> None:
    from edgeformer.backends.numpy import Handle, NumpyOps

    Handle(NumpyOps(), layer, 8, lambda name: np.ones(8, np.float32))(np.ones((1, 2, 8), np.float32))


def _torch(layer: Layer) -> None:
    torch = pytest.importorskip("torch")
    from edgeformer.backends.torch.module import Module, TorchOps

    Module(layer, 8, TorchOps())(torch.ones(1, 2, 8))


def _mlx(layer: Layer) -> None:
    mx = pytest.importorskip("mlx.core")
    from edgeformer.backends.mlx.module import Module
    from edgeformer.backends.mlx.ops import MlxOps

    Module(layer, 8, MlxOps())(mx.ones((1, 2, 8)))


def _onnx(layer: Layer) -> None:
    from edgeformer.exporters.onnx.graph import _input
    from edgeformer.exporters.onnx.graph_ops import FLOAT, GraphOps
    from edgeformer.exporters.onnx.handles import GraphHandle, Initializers

    ops = GraphOps()
    weights = Initializers(ops, dict.fromkeys(tensors(layer), "fp32"))
    GraphHandle(ops, layer, 8, weights)(_input(ops, "x", FLOAT, ("b", "t", 8)))


@pytest.mark.parametrize("enter", [_numpy, _torch, _mlx, _onnx])
def test_an_entry_point_that_there_is_not_fails_on_every_back_end(enter):
    """Two back ends gave a function for any name, which failed later or not at all."""
    with pytest.raises(AttributeError, match="has no attribute 'ad'"):
        enter(Mistyped(child=RMSNorm(eps=1e-5)))


def test_behaviour_does_not_depend_on_a_flags_words(tmp_path, monkeypatch):
    """Rows were late, and tried again, where a flag began with "time limit"."""
    from edgeformer.measure import harness
    from edgeformer.measure.flags import Flag, FlagCode
    from edgeformer.measure.journal import Journal
    from edgeformer.measure.row import Plan, Row, Shape

    monkeypatch.setenv("EDGEFORMER_CACHE", str(tmp_path))
    late = Row(Plan("numpy", "m", "checkpoint", "fp32"), Shape(8, 2), 1)
    late.flags = [Flag(FlagCode.TIME_LIMIT, "reworded"), Flag(FlagCode.SPREAD, "time limit: only words")]
    assert harness._late(late)
    journal, _ = Journal.begin("0" * 16, resume=False)
    journal.save((0, 0), late)
    journal.close(finished=False)
    again, _ = Journal.begin("0" * 16, resume=True)
    restored = Row(late.plan, late.shape, 1)
    again.restore((0, 0), restored)
    again.close(finished=True)
    assert restored.flags == late.flags[1:] and not harness._late(restored)


def test_a_reason_is_found_by_its_runtime_not_by_its_words():
    from edgeformer.errors import InputError
    from edgeformer.measure import bench, plans

    class Reworded(plans.NoRow):
        def __str__(self) -> str:
            return f"{self.runtime} is left out ({self.reason})"

    with pytest.raises(InputError, match=r"^numpy is left out \(it is slow\)$"):
        bench._check_chosen(["numpy"], [], [Reworded("numpy", "it is slow"), Reworded("torch", "no")])


def test_a_manifest_of_a_future_version_is_refused(tmp_path):
    import json

    from edgeformer.checkpoint import bundle
    from edgeformer.checkpoint.manifest import MANIFEST, SCHEMA
    from edgeformer.errors import ArtefactError
    from edgeformer.exporters.onnx.exporter import export_onnx

    made = export_onnx(load(STDLIB), tmp_path / "m")
    assert bundle.read_manifest(made.folder) == made.manifest and made.manifest["schema"] == SCHEMA
    with pytest.raises(TypeError, match="precision is 4"):
        bundle.write_manifest(made.folder, made.manifest | {"precision": 4})
    (made.folder / MANIFEST).write_text(json.dumps(made.manifest | {"schema": SCHEMA + 1}))
    with pytest.raises(ArtefactError, match="written by a newer edgeformer"):
        bundle.read_manifest(made.folder)


def test_a_family_as_plug_ins_were_written_before():
    """Globals `spec`, `NAMES`, ... instead of `FAMILY`."""
    import types

    from edgeformer.models import bert
    from edgeformer.models._family import family_of

    old = types.ModuleType("old_family")
    names = ("spec", "names", "config", "PREFIXES", "IGNORED", "TIED", "RENAMED", "UNPREFIXED")
    vars(old).update({name: getattr(bert, name) for name in names})
    with pytest.warns(DeprecationWarning, match="old_family has no FAMILY"):
        assert family_of(old) == replace(bert.FAMILY, copies=None, common=False, heads=())
    assert family_of(types.ModuleType("no_family")) is None


def test_a_precision_is_added_in_one_place():
    """What has an entry per precision by necessity (limits, names of others) has one for each; all else is made from the list."""
    import typing

    from click import Choice

    from edgeformer.checkpoint.manifest import Compute
    from edgeformer.cli import export as export_command
    from edgeformer.cli import generate as generate_command
    from edgeformer.cli import tune as tune_command
    from edgeformer.exporters.gguf import exporter as gguf
    from edgeformer.exporters.mlx import weights as mlx_weights
    from edgeformer.measure.roofline import CACHE_BYTES
    from edgeformer.verification.parity import KL_LIMITS, LIMITS
    from edgeformer.weights.costs import BYTES_PER_WEIGHT
    from edgeformer.weights.formats import QUANTIZED
    from edgeformer.weights.precision import FLOAT_TYPES
    from edgeformer.weights.safetensors_file import DTYPES

    floats, computed = set(FLOAT_TYPES), {*FLOAT_TYPES, "int8"}
    assert set(typing.get_args(Compute)) == set(LIMITS) == set(CACHE_BYTES) == computed
    assert set(KL_LIMITS) == computed - {"fp32"}  # fp32 has no allowance
    assert set(BYTES_PER_WEIGHT) == floats | set(QUANTIZED)
    assert set(gguf.PRECISIONS) == set(gguf._FILE_TYPES) == floats | set(QUANTIZED) | {"mixed"}
    assert floats < set(mlx_weights.PRECISIONS)
    assert all(DTYPES[t.safetensors] == t.numpy and t.numpy.itemsize == t.itemsize for t in FLOAT_TYPES.values())
    for module, option in ((export_command, "dtype"), (generate_command, "precision"), (tune_command, "precision")):
        (choice,) = (p.type for p in module.command.params if p.name == option)
        assert isinstance(choice, Choice) and set(choice.choices) == floats


@pytest.mark.parametrize("command", ["bench", "compare"])
def test_an_option_of_measuring_reaches_the_other_machine(command):
    """`--host` passes options on by hand-kept tables; a new option has to be in them, or here with its reason."""
    from edgeformer.cli import cli
    from edgeformer.cli._host import _FLAGS, _PASSED

    named = {"sources", "model", "against", "precisions", "weights", "accuracy_level"}  # passed by the command itself
    here = {"host", "host_command", "json_file", "markdown", "report_file", "output"}  # of this machine's outputs
    apart = {"text", "trusted"}  # a file that is sent; and code is never trusted on another machine's behalf
    made = cli.get_command(None, command)  # type: ignore[arg-type]
    assert made is not None
    left = {p.name for p in made.params} - set(_PASSED) - set(_FLAGS) - named - here - apart
    assert not left


@pytest.mark.parametrize(
    ("package", "content", "command", "words"),
    [
        ("runtimes", "", ["runtimes"], "must define Runtime, a class, but defines nothing"),
        ("runtimes", "Runtime = 3", ["runtimes"], "must define Runtime, a class, but defines an object of type int"),
        (
            "exporters.onnx.targets",
            "",
            ["export", str(STDLIB), "-o", "x", "--target", "unfinished"],
            "must define Target",
        ),
        ("models", "", None, "must define FAMILY"),
        (
            "advise.rules",
            "TARGET = 'x'",
            ["advise", str(STDLIB)],
            "must define remarks, a function, but defines nothing",
        ),
        ("cli", "", ["unfinished"], "must define command"),
        (
            "quantization.methods",
            "",
            ["quantize", str(STDLIB), "-o", "x", "--method", "unfinished"],
            "must define Method",
        ),
    ],
)
def test_a_part_that_is_not_finished_is_named(package, content, command, words, monkeypatch, tmp_path, caplog):
    """An empty file of our own ended in a traceback, and as a family in a message that contradicted itself."""
    import importlib

    from click.testing import CliRunner

    from edgeformer.checkpoint.loading import family
    from edgeformer.cli import cli
    from edgeformer.errors import PluginError

    (tmp_path / "unfinished.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"edgeformer.{package}")
    monkeypatch.setattr(module, "__path__", [*module.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"edgeformer.{package}.unfinished", raising=False)
    importlib.invalidate_caches()
    if command is None:
        with pytest.raises(PluginError, match=words):
            family("unfinished")
        return
    done = CliRunner().invoke(cli, command)
    said = done.output + str(done.exception or "") + caplog.text
    assert words in " ".join(said.split()), said


def test_the_family_in_contributing_works():
    """Its code block, run."""
    import re

    from support import ROOT

    from edgeformer.models._config import HfConfig

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    made: dict[str, Any] = {}
    exec(code, made)
    sizes = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "vocab_size": 97,
    }
    spec = made["FAMILY"].spec(HfConfig({"model_type": "mymodel", "clip_qkv": 8.0, **sizes}, "the example"))
    assert spec.depth() == 2 and spec.blocks[0].attention.clip == 8.0


def test_importing_a_runtime_sets_no_environment_variable(monkeypatch):
    """MLX's was set by an import; now by what uses MLX, and before it computes anything."""
    import subprocess

    program = (
        "import os, edgeformer.runtimes.mlx as mlx; assert 'MLX_ENABLE_TF32' not in os.environ\n"
        "mlx.back_end_missing(); print(os.environ['MLX_ENABLE_TF32'])"
    )
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
