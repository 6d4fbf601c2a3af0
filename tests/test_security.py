"""No file of a model's folder runs as code, and no name in one leads out of it. Each attack leaves a canary if it works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import STDLIB, saved, small_spec

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import load
from edgeformer.errors import ArtefactError, CheckpointError, ConfigError, EdgeformerError
from edgeformer.exporters.mlx.exporter import CODE_NAME, export_mlx
from edgeformer.exporters.onnx.exporter import export_onnx
from edgeformer.files import trust
from edgeformer.files.json_file import parse_json, read_json_file
from edgeformer.files.paths import check_links
from edgeformer.files.trust import isolated
from edgeformer.inference.lookup import get, names
from edgeformer.inference.runtime import Options
from edgeformer.weights.onnx_file import locations


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch):
    monkeypatch.setattr(trust, "_granted", {})


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefact") / "onnx"
    export_onnx(load(STDLIB), folder)
    return folder


def edited(folder, name, change):
    file = folder / name
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    if name != bundle.MANIFEST:  # a hostile folder's manifest says what its files are
        edited(folder, bundle.MANIFEST, lambda m: m["files"].update({name: file.stat().st_size}))


def canary(folder, name="evil.py"):
    """A Python file that leaves a mark when it runs."""
    (folder / name).write_text(f"open({str(folder / 'ran')!r}, 'w').close()\nModel = ModelArgs = None\n")
    return folder / "ran"


@pytest.mark.parametrize("runtime", names())
def test_no_runtime_runs_code_that_an_artefact_names(runtime, artefact, tmp_path):
    """Every adapter: a folder with all keys that name code is refused, or the code is ignored."""
    made, _ = get(runtime)
    if made.unavailable() is not None or made.served or not made.ranked:
        pytest.skip(f"{runtime} is not installed, or opens no folder")
    folder = tmp_path / "m"
    if made.takes("mlx"):
        export_mlx(saved(small_spec(), tmp_path / "source")[0], folder)
    elif made.opens == "onnx":
        shutil.copytree(artefact, folder)
    else:
        shutil.copytree(STDLIB, folder)
    mark = canary(folder)
    names_code = {"model_file": "evil.py", "auto_map": {k: "evil.Model" for k in ("AutoModel", "AutoModelForCausalLM")}}
    for name in ("config.json", "tokenizer_config.json", "genai_config.json"):
        if (folder / name).exists():
            data = json.loads((folder / name).read_text()) | names_code | {"custom_ops_library": "evil.py"}
            (folder / name).write_text(json.dumps(data))
    if (folder / bundle.MANIFEST).exists():
        sizes = bundle.sizes(folder)
        edited(folder, bundle.MANIFEST, lambda m: m["files"].update({n: sizes[n] for n in m["files"]}))
    try:
        source = load(folder, allow_unread_config=True) if made.opens == "checkpoint" else folder
        made.open(source, Options(capacity=16))
    except EdgeformerError:
        pass
    assert not mark.exists()


def test_another_model_file_than_ours(tmp_path):
    pytest.importorskip("mlx_lm")
    folder = tmp_path / "mlx"
    export_mlx(saved(small_spec(softcap=2.0), tmp_path / "source")[0], folder)
    get("mlx_lm")[0].open(folder, Options(capacity=16))  # our own code runs
    mark = canary(folder)
    edited(folder, "config.json", lambda c: c.update(model_file="evil.py"))
    with pytest.raises(
        ArtefactError, match=r"model_file = 'evil\.py', which would run as code.*--trust-code .*SHA-256 [0-9a-f]{64}"
    ):
        get("mlx_lm")[0].open(folder, Options(capacity=16))
    assert not mark.exists()
    trust.trust(folder / "evil.py")
    with pytest.raises(Exception):  # noqa: B017 - it runs, and builds no model
        get("mlx_lm")[0].open(folder, Options(capacity=16))
    assert mark.exists()
    mark.unlink()
    (folder / "evil.py").write_text((folder / "evil.py").read_text() + "# changed since\n")
    with pytest.raises(ArtefactError, match="which would run as code"):
        get("mlx_lm")[0].open(folder, Options(capacity=16))
    edited(folder, "config.json", lambda c: c.update(model_file=CODE_NAME))
    (folder / CODE_NAME).write_text((folder / "evil.py").read_text())
    edited(folder, bundle.MANIFEST, lambda m: m["files"].update({CODE_NAME: (folder / CODE_NAME).stat().st_size}))
    with pytest.raises(ArtefactError, match="which would run as code"):
        get("mlx_lm")[0].open(folder, Options(capacity=16))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"custom_ops_library": "evil.so"}, "would run as code"),
        ({"custom_ops_library": "/tmp/evil.so"}, "lies outside"),
        ({"provider_options": [{"qnn": {"backend_path": "evil.so"}}]}, "would run as code"),
        ({"provider_options": [{"openvino": {"cache_dir": "/etc"}}]}, "plain values"),
        ({"enable_profiling": "../profile"}, "write files or load code: enable_profiling"),
        ({"ep_context_file_path": "x"}, "write files or load code: ep_context_file_path"),
    ],
)
def test_what_a_genai_config_may_not_name(options, words, artefact, tmp_path):
    pytest.importorskip("onnxruntime_genai")
    folder = tmp_path / "m"
    shutil.copytree(artefact, folder)
    (folder / "evil.so").write_bytes(b"no library")
    edited(folder, "genai_config.json", lambda c: c["model"]["decoder"]["session_options"].update(options))
    with pytest.raises(ArtefactError, match=words):
        get("ort_genai")[0].open(folder, Options(capacity=16))


def test_a_worker_imports_nothing_of_the_current_folder(tmp_path):
    """`cd downloaded-model && edgeformer bench .`, with an empty entry in PYTHONPATH besides."""
    shutil.copytree(STDLIB, tmp_path / "m")
    for name in ("numpy.py", "json.py", "edgeformer.py", "psutil.py"):
        canary(tmp_path / "m", name)
    script = shutil.which("edgeformer", path=str(Path(sys.executable).parent))
    environment = os.environ | {"PYTHONPATH": f"{os.pathsep}/nowhere"}
    arguments = [
        "bench",
        ".",
        "--runtimes",
        "numpy",
        "--rounds",
        "1",
        "--prompt",
        "4",
        "--gen",
        "2",
        "--no-roofline",
        "--no-twin",
    ]
    # the first process is started as an installed script is: the current folder is not on its path, whatever PYTHONPATH has
    done = subprocess.run([script, *arguments], cwd=tmp_path / "m", capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "m" / "ran").exists()
    assert isolated(environment) == {"PYTHONSAFEPATH": "1", "PYTHONPATH": "/nowhere"}


def test_links_out_of_a_folder(tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    folder = tmp_path / "m"
    shutil.copytree(STDLIB, folder)
    (folder / "inside.json").symlink_to(folder / "config.json")
    check_links(folder, CheckpointError)
    (folder / "added_tokens.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"added_tokens\.json is a link to .*secret\.json, outside"):
        load(folder)


def test_the_links_of_a_hub_cache(tmp_path):
    blobs, snapshot = tmp_path / "models--o--n" / "blobs", tmp_path / "models--o--n" / "snapshots" / "abc"
    shutil.copytree(STDLIB, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        if file.is_file():
            (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    assert load(snapshot).weights is not None
    (snapshot / "x.json").symlink_to(tmp_path / "models--o--n" / "x.json")
    with pytest.raises(CheckpointError, match="is a link"):
        load(snapshot)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "..\\x", "C:\\x", "", 3, "a\0b"])
def test_an_index_of_shards_elsewhere(name, tmp_path):
    shutil.copy(STDLIB / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match=r"lies outside|must name a file|not a shard index"):
        load(tmp_path)


@pytest.mark.parametrize("key", ["model_file", "files", "linked"])
def test_a_manifest_that_points_elsewhere(key, artefact, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(artefact, folder)
    value = {
        "model_file": "../model.onnx",
        "files": {"../../x": 1},
        "linked": {"w": {"path": "/etc/passwd", "hard_link": False}},
    }
    edited(folder, bundle.MANIFEST, lambda m: m.update({key: value[key]}))
    uses = [lambda: get("onnxruntime")[0].open(folder, Options(capacity=8))]
    if key != "files":  # which `load` reads nothing of
        uses.append(lambda: load(folder))
    for use in uses:
        with pytest.raises(EdgeformerError, match=r"lies outside|is damaged"):
            use()


def test_external_data_elsewhere(artefact, tmp_path):
    """Wherever in the graph the tensor stands; asked of onnx: the same locations."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "m"
    shutil.copytree(artefact, folder)
    file = folder / "model.onnx"
    model = onnx.load(str(file), load_external_data=False)
    found = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    assert locations(file) == found == {"model.onnx.data"}
    body = onnx.helper.make_graph([], "body", [], [], [onnx.numpy_helper.from_array(np.zeros(1, np.float32), "hidden")])
    hidden = body.initializer[0]
    hidden.ClearField("raw_data")
    hidden.data_location = onnx.TensorProto.EXTERNAL
    entry = hidden.external_data.add()
    entry.key, entry.value = "location", "../../secret"
    node = model.graph.node.add()
    node.op_type, node.name = "If", "if"
    node.attribute.append(onnx.helper.make_attribute("then_branch", body))
    file.write_bytes(model.SerializeToString())
    assert locations(file) == {"model.onnx.data", "../../secret"}
    edited(folder, bundle.MANIFEST, lambda m: m["files"].update({"model.onnx": file.stat().st_size}))
    with pytest.raises(ArtefactError, match=r"names '\.\./\.\./secret', which lies outside"):
        get("onnxruntime")[0].open(folder, Options(capacity=8))


@pytest.mark.parametrize("data", [b"\x3a\xff\xff", b"\x3a\x05", b"\x0b", b"\xff" * 12, b""])
def test_a_file_that_is_no_graph(data, tmp_path):
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ArtefactError):
        locations(tmp_path / "model.onnx")


def test_json_that_is_too_much(tmp_path):
    file = tmp_path / "config.json"
    for text, words in (
        ("[" * 100_000, "nested deeper than 100"),
        ("[" * 101 + "]" * 101, "nested deeper than 100"),
        (" " * 17_000_000, "17,000,000 bytes"),
        ("{", "is not JSON"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "is not JSON"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_json_file(file, ConfigError)
    assert parse_json("[" * 100 + "]" * 100, "x", ConfigError) is not None
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', "x", ConfigError) == {"a": 1}
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ConfigError, match="not a regular file"):  # and doesn't wait for a writer
        read_json_file(file, ConfigError)


def test_templates_are_in_a_sandbox():
    from edgeformer.checkpoint.companions.chat import render

    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(EdgeformerError):
        render(template, [{"role": "user", "content": "x"}], {})
