"""Exports: what is written, linked, refused, and left behind when something goes wrong."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from family_cases import TINY
from support import STDLIB, load_tiny, open_session, random_ids, run_cached, saved, small_spec

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import load
from edgeformer.errors import ArtefactError, ExportError, InputError
from edgeformer.exporters.onnx import exporter, filling
from edgeformer.exporters.onnx.exporter import export_onnx


@pytest.fixture
def checkpoint_copy(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(STDLIB, folder)
    return folder


# --------------------------------------------------------------------------------------------------- files and links


def test_link_writes_no_weights(checkpoint_copy, tmp_path):
    made = export_onnx(load(checkpoint_copy), tmp_path / "onnx", weights="link")
    linked = tmp_path / "onnx" / "model.safetensors"
    assert linked.stat().st_ino == (checkpoint_copy / "model.safetensors").stat().st_ino
    assert sum(v for k, v in made.manifest["files"].items() if k.startswith("model.onnx")) < 300_000


def test_link_of_transposed_tensors_copies_only_those(tmp_path):
    config = dict(n_embd=48, n_head=6, n_layer=2, n_positions=64, vocab_size=97)
    loaded, _ = load_tiny(tmp_path / "hf", "gpt2", **config)
    export_onnx(loaded, tmp_path / "link", weights="link")
    export_onnx(loaded, tmp_path / "copy")
    ids = random_ids(97, 1, 20)
    a, b = (run_cached(open_session(tmp_path / n), ids, None, 10) for n in ("link", "copy"))
    assert np.array_equal(a, b)
    assert (tmp_path / "link" / "model.onnx.data").stat().st_size < (
        tmp_path / "copy" / "model.onnx.data"
    ).stat().st_size


def test_a_linked_file_that_changed_is_an_error(checkpoint_copy, tmp_path):
    export_onnx(load(checkpoint_copy), tmp_path / "onnx", weights="link")
    file = checkpoint_copy / "model.safetensors"
    with file.open("r+b") as f:
        f.seek(file.stat().st_size // 2)
        f.write(b"\0" * 64)
    with pytest.raises(ArtefactError, match=r"model\.safetensors"):
        open_session(tmp_path / "onnx")


def test_a_replaced_original_leaves_a_hard_link_as_it_was(checkpoint_copy, tmp_path):
    export_onnx(load(checkpoint_copy), tmp_path / "onnx", weights="link")
    (checkpoint_copy / "model.safetensors").unlink()
    open_session(tmp_path / "onnx")


def test_link_across_file_systems(checkpoint_copy, tmp_path, monkeypatch):
    """Without hard links the manifest keeps the path, our runtime finds it, and the user is told."""

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    made = export_onnx(load(checkpoint_copy), tmp_path / "onnx", weights="link")
    assert any("another file system" in n for n in made.notes)
    assert not (tmp_path / "onnx" / "model.safetensors").exists()
    session = open_session(tmp_path / "onnx", capacity=16)
    assert np.isfinite(session.forward(random_ids(4096, 1, 8))).all()
    (checkpoint_copy / "model.safetensors").unlink()
    with pytest.raises(ArtefactError, match="is gone"):
        open_session(tmp_path / "onnx")


def test_link_refuses_a_conversion(checkpoint_copy, tmp_path):
    with pytest.raises(ExportError, match="so --precision fp16 is not possible"):
        export_onnx(load(checkpoint_copy), tmp_path / "onnx", weights="link", precision="fp16")
    assert not (tmp_path / "onnx").exists()


def test_sharded_checkpoint_links_every_shard(tmp_path):
    hf = load_tiny(tmp_path / "hf", "llama", **TINY, head_dim=16)[1]
    hf.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    made = export_onnx(load(tmp_path / "shards"), tmp_path / "onnx", weights="link")
    assert len(made.manifest["linked"]) > 2
    ids = random_ids(97, 1, 12)
    export_onnx(load(tmp_path / "hf"), tmp_path / "single")
    assert np.array_equal(*(run_cached(open_session(tmp_path / n), ids, None, 5) for n in ("onnx", "single")))


def test_a_folder_without_tokenizer_still_exports(tmp_path):
    loaded, _ = saved(small_spec(), tmp_path / "m")
    export_onnx(loaded, tmp_path / "onnx")
    assert not (tmp_path / "onnx" / "tokenizer.json").exists()


# ------------------------------------------------------------------------------------------------------- failures


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_full_disk_leaves_nothing(checkpoint_copy, tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()

    def full(self, name, source, dtype, shape):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(filling.DataWriter, "source", full)
    with pytest.raises(ExportError, match=r"No space left on device.*Nothing was left behind"):
        export_onnx(load(checkpoint_copy), place / "onnx")
    assert leftovers(place) == []


def test_a_failed_replacement_keeps_the_old_artefact(checkpoint_copy, tmp_path, monkeypatch):
    place = tmp_path / "place"
    export_onnx(load(checkpoint_copy), place / "onnx")
    before = (place / "onnx" / bundle.MANIFEST).read_text()
    monkeypatch.setattr(
        exporter, "_companions", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    with pytest.raises(ExportError):
        export_onnx(load(checkpoint_copy), place / "onnx", precision="fp16")
    assert leftovers(place) == ["onnx"] and (place / "onnx" / bundle.MANIFEST).read_text() == before


def test_an_unwritable_place(checkpoint_copy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="can't write"):
        export_onnx(load(checkpoint_copy), tmp_path / "file" / "onnx")


def test_other_peoples_folders_are_not_replaced(checkpoint_copy, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="is not an edgeformer artefact"):
        export_onnx(load(checkpoint_copy), mine)
    assert (mine / "thesis.tex").exists()
    export_onnx(load(checkpoint_copy), mine, force=True)
    assert (mine / "model.onnx").exists()


def test_fp16_refuses_a_weight_it_cannot_hold(tmp_path):
    loaded, _ = saved(small_spec(), tmp_path / "m", scale=1e6)
    with pytest.raises(ExportError, match="exceeds fp16's largest value"):
        export_onnx(loaded, tmp_path / "onnx", precision="fp16")


def test_context_is_checked(checkpoint_copy, tmp_path):
    with pytest.raises(ExportError, match=r"outside 1\.\.1024"):
        export_onnx(load(checkpoint_copy), tmp_path / "onnx", context=4096)
    export_onnx(load(checkpoint_copy), tmp_path / "onnx", context=64)
    with pytest.raises(InputError, match="the cache holds 64"):
        open_session(tmp_path / "onnx").forward(random_ids(4096, 1, 65))


def test_unknown_target(checkpoint_copy, tmp_path):
    with pytest.raises(ExportError, match="targets are coreml, cpu, cuda, portable, web, webgpu"):
        export_onnx(load(checkpoint_copy), tmp_path / "onnx", target="toaster")


def test_a_damaged_artefact_is_refused(checkpoint_copy, tmp_path):
    export_onnx(load(checkpoint_copy), tmp_path / "onnx")
    data = tmp_path / "onnx" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(ArtefactError, match="the manifest says"):
        open_session(tmp_path / "onnx")


def test_a_newer_manifest_is_refused(checkpoint_copy, tmp_path):
    export_onnx(load(checkpoint_copy), tmp_path / "onnx")
    manifest = tmp_path / "onnx" / bundle.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 99}))
    with pytest.raises(ArtefactError, match="newer edgeformer"):
        bundle.read_manifest(tmp_path / "onnx")


def test_an_onnx_file_of_another_tool(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(ArtefactError, match=r"model\.onnx was not written by edgeformer"):
        bundle.read_manifest(tmp_path)


def test_progress_reaches_the_end(checkpoint_copy, tmp_path):
    seen = []
    export_onnx(load(checkpoint_copy), tmp_path / "onnx", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and [s[0] for s in seen] == sorted(s[0] for s in seen)


def test_spec_of_an_artefact_is_the_models(checkpoint_copy, tmp_path):
    loaded = load(checkpoint_copy)
    export_onnx(loaded, tmp_path / "onnx")
    assert bundle.read_spec(tmp_path / "onnx") == loaded.spec


# --------------------------------------------------------------------------------------------------- what is kept safe


def test_the_model_itself_is_never_replaced(checkpoint_copy, tmp_path, monkeypatch):
    for output in (checkpoint_copy, checkpoint_copy.parent):
        with pytest.raises(ExportError, match="would replace the model itself"):
            export_onnx(load(checkpoint_copy), output, force=True)
    monkeypatch.chdir(checkpoint_copy.parent)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match="would replace the current folder"):
        export_onnx(load(checkpoint_copy), ".", force=True)
    assert (checkpoint_copy / "model.safetensors").exists()


def test_notes_beside_an_artefact_are_kept(checkpoint_copy, tmp_path):
    export_onnx(load(checkpoint_copy), tmp_path / "onnx")
    export_onnx(load(checkpoint_copy), tmp_path / "onnx", weights="link")
    (tmp_path / "onnx" / "NOTES.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"also holds NOTES\.txt"):
        export_onnx(load(checkpoint_copy), tmp_path / "onnx")


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1}', '{"schema": "x"}', '{"schema": 1, "precision": 3}'])
def test_a_damaged_manifest(content, tmp_path):
    (tmp_path / bundle.MANIFEST).write_text(content)
    with pytest.raises(ArtefactError, match=r"is not JSON|is not a manifest|is damaged"):
        bundle.read_manifest(tmp_path)


def test_weights_of_a_spec_file_are_never_replaced(tmp_path):
    saved(small_spec(), tmp_path / "m")
    apart = load(tmp_path / "m" / "spec.json", weights=tmp_path / "m" / "model.safetensors")
    with pytest.raises(ExportError, match="would replace the model itself"):
        export_onnx(apart, tmp_path / "m", force=True)
    assert (tmp_path / "m" / "model.safetensors").exists()


def test_a_damaged_artefact_is_replaced_with_force_only(checkpoint_copy, tmp_path):
    export_onnx(load(checkpoint_copy), tmp_path / "onnx")
    (tmp_path / "onnx" / bundle.MANIFEST).write_text("{")
    with pytest.raises(ExportError, match="--force to replace"):
        export_onnx(load(checkpoint_copy), tmp_path / "onnx")
    export_onnx(load(checkpoint_copy), tmp_path / "onnx", force=True)


def test_special_ids_of_a_lone_config(tmp_path):
    load_tiny(tmp_path / "hf", "llama", **TINY, eos_token_id=7, bos_token_id=5)
    apart = replace(load(tmp_path / "hf" / "config.json"), weights=load(tmp_path / "hf").weights)
    export_onnx(apart, tmp_path / "onnx")
    config = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())
    assert (config["model"]["eos_token_id"], config["model"]["bos_token_id"]) == (7, 5)
