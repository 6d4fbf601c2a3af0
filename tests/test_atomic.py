"""Replacing files and folders: killed at every step, there is the old one or the new one, whole; and nothing stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from edgeformer.errors import InputError
from edgeformer.files import atomic
from edgeformer.files.atomic import repair, replace_file, replace_folder, write_output
from edgeformer.files.locks import Held, Lock, held
from edgeformer.files.scratch import partial_folder, sweep, temporary_folder

KILLED = """
import os, pathlib, shutil, sys
from edgeformer.files import atomic
place, at, exchange = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "exchange"
calls = 0
def counted(real):
    def call(*given, **named):
        global calls
        for _ in ("before", "after"):
            calls += 1
            if calls > at:
                os._exit(9)
            if _ == "before":
                result = real(*given, **named)
        return result
    return call
for module, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "open"), (shutil, "rmtree"), (pathlib.Path, "unlink")):
    setattr(module, name, counted(getattr(module, name)))
if not exchange:
    atomic._exchange = lambda *_: False
else:
    atomic._exchange = counted(atomic._exchange)
old = atomic.replace_folder(place / ".out.aaaaaaaa.partial", place / "out")
if old is not None:
    shutil.rmtree(old)
"""


def folders(place):
    for name, content in (("out", "old"), (".out.aaaaaaaa.partial", "new")):
        (place / name).mkdir()
        for file in ("a", "b"):
            (place / name / file).write_text(content)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_killed_at_every_step_of_a_replacement(way, tmp_path):
    seen = set()
    for at in range(200):
        place = tmp_path / str(at)
        place.mkdir()
        folders(place)
        done = subprocess.run([sys.executable, "-c", KILLED, place, str(at), way.split()[0]], capture_output=True)
        repair(place / "out")
        sweep(place / "out")
        contents = {(place / "out" / file).read_text() for file in ("a", "b")}
        assert len(contents) == 1, at
        assert [p.name for p in place.iterdir()] == ["out"], at
        seen |= contents
        if done.returncode == 0:
            break
        assert done.returncode == 9, done.stderr
    else:
        pytest.fail("it never ended")
    assert seen == {"old", "new"} and at > 10


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    folders(tmp_path)
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    real, calls = os.rename, []

    def fails_once(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(OSError, match="Input/output"):
        replace_folder(tmp_path / ".out.aaaaaaaa.partial", tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.aaaaaaaa.partial", "out"]


def test_only_regular_files_are_replaced(tmp_path):
    file, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    replace_file(link, b"new")
    assert link.is_symlink() and file.read_text() == "new" and file.stat().st_mode & 0o777 == 0o640
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    replace_file(pipe, b"through")
    reader.join(10)
    assert got == ["through"] and pipe.is_fifo()
    with pytest.raises(InputError, match="is a folder"):
        write_output(tmp_path, "x")
    with pytest.raises(InputError, match="can't write"):
        write_output(tmp_path / "no" / "such", "x")


def test_what_goes_to_the_standard_output_by_its_path(tmp_path):
    """Through a pipe and into a file: the text arrives, and the device is still one."""
    program = "from edgeformer.files.atomic import write_output; write_output('/dev/stdout', 'text')"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"text"
    with (tmp_path / "file").open("wb") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True)
    assert (tmp_path / "file").read_text() == "text"


def test_a_partial_folder_of_a_killed_process_is_deleted_by_the_next(tmp_path):
    program = (
        "import os, pathlib\n"
        "from edgeformer.files.scratch import partial_folder\n"
        f"with partial_folder(pathlib.Path({str(tmp_path / 'out')!r})) as scratch:\n"
        "    (scratch / 'half').write_text('x'); os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program])
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.") and left.name.endswith(".partial")
    with partial_folder(tmp_path / "other"):
        assert left.exists()  # of another output
    with partial_folder(tmp_path / "out") as mine:
        assert not left.exists()
        assert sweep(tmp_path / "out") == [] and mine.exists()  # one that is in use
    assert not list(tmp_path.iterdir())


def test_temporary_folders_of_killed_processes_only(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "edgeformer-notes").mkdir()  # of the user's
    program = (
        "import os, tempfile\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "from edgeformer.files.scratch import temporary_folder\n"
        "with temporary_folder(): os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program])
    assert len(list(tmp_path.iterdir())) == 2
    with temporary_folder() as one, temporary_folder() as other:
        assert sorted(tmp_path.iterdir()) == sorted([one, other, tmp_path / "edgeformer-notes"])
    assert [p.name for p in tmp_path.iterdir()] == ["edgeformer-notes"]


def test_locks(tmp_path):
    file = tmp_path / "lock"
    with held(file, shared=True), held(file, shared=True, timeout=0), pytest.raises(Held):
        Lock(file, timeout=0)
    with held(file), pytest.raises(Held):
        Lock(file, shared=True, timeout=0)


def test_a_lock_whose_file_was_deleted_is_no_lock(tmp_path):
    """The holder deletes the file: who waited for it and who makes it anew don't both get in."""
    file, order = tmp_path / "lock", []
    first = Lock(file)

    def waits():
        with held(file):
            order.append("in")
            time.sleep(0.3)
            order.append("out")

    waiting = [threading.Thread(target=waits) for _ in range(2)]
    waiting[0].start()
    time.sleep(0.2)  # it has opened the old file
    file.unlink()
    first.release()
    waiting[1].start()
    for thread in waiting:
        thread.join(10)
    assert order == ["in", "out", "in", "out"]
