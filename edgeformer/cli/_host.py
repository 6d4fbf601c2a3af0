"""`--host`: run the same command on another machine over ssh; its records are fetched, then shown and written as if made here.

Local files and folders are sent once, into that machine's cache, under a hash of their content. ssh's own configuration
applies: keys, ports, jump hosts.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path
from typing import Any

from edgeformer.cli._bench import check_outputs
from edgeformer.cli._common import echo
from edgeformer.errors import InputError
from edgeformer.files.cache import MARK, lock_file

_PASSED = {
    "runtimes": "--runtimes", "rounds": "--rounds", "limit": "--limit", "seed": "--seed", "threads": "--threads",
    "prompts": "--prompt", "gens": "--gen", "depths": "--depth", "batches": "--batch", "concurrency": "--concurrency",
}  # fmt: skip
_FLAGS = {
    "profile": "--profile", "no_twin": "--no-twin", "no_roofline": "--no-roofline", "resume": "--resume",
    "allow_unread_config": "--allow-unread-config",
    "allow_nonfinite": "--allow-nonfinite",
    "without_head": "--without-head",
}  # fmt: skip


def run_there(command: str, sources: list[str], named: dict[str, str | None], options: dict[str, Any]) -> None:
    """Send the inputs, run the command on the host, and fetch its records. Exits with the remote command's exit code.

    Raises:
        InputError: ssh fails, or edgeformer is not installed on the host.
    """
    from edgeformer.measure.record import write_jsonl

    host = options["host"]
    if host.startswith("-"):
        raise InputError(f"{host!r} is not a host name; give one such as user@mac")
    check_outputs(options)
    if options.get("output") is not None:
        raise InputError(
            "-o and --host exclude each other: --host builds the artefacts on the other machine; leave one out"
        )
    home = _cache_there(host, options["host_command"])
    there = [_sent(source, host, home) for source in sources]
    line = [command, *there]
    for name, value in named.items():
        if value is not None:
            line += [name, _sent(value, host, home) if name == "--against" else value]
    for name, flag in _PASSED.items():
        value = options[name]
        if value is not None:
            line += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    line += [flag for name, flag in _FLAGS.items() if options[name]]
    if options["text"] is not None:
        line += ["--text", _sent(options["text"], host, home)]
    line += ["--json", "-"]
    text = f"{options['host_command']} {shlex.join(line)}"
    echo(f"{host}: {text}", err=True)
    done = _ssh(host, text, quiet=False)
    try:
        records = [json.loads(row) for row in done.stdout.splitlines() if row.strip()]
    except ValueError as e:
        raise InputError(f"{host} returned something other than JSONL records: {done.stdout[:200]!r}") from e
    if not records:
        raise InputError(f"{host} returned no records; its messages above give the reason")
    for record in records:
        record["machine_host"] = host.rpartition("@")[2]
    _keep(records, options, write_jsonl)
    sys.exit(done.returncode)


def _keep(records: list[dict[str, Any]], options: dict[str, Any], write_jsonl: Any) -> None:
    from edgeformer.report.formats import text_of

    if options["json_file"] is not None:
        write_jsonl(records, None if options["json_file"] == "-" else options["json_file"])
    if options["report_file"] is not None:
        from edgeformer.report.page import write_html

        write_html(records, options["report_file"])
    if options["json_file"] != "-":
        echo(text_of(records, "markdown"), nl=False)


def _cache_there(host: str, program: str) -> str:
    """The folder for models in the host's cache; asking for it also checks that edgeformer is installed there."""
    done = _ssh(host, f"{program} cache --json")
    if done.returncode == 127:
        raise InputError(
            f"{program} was not found on {host}; install it there, or give its path: --host-command '~/venv/bin/edgeformer'"
        )
    try:
        return f"{json.loads(done.stdout)['folder']}/models"
    except (ValueError, KeyError) as e:
        raise InputError(
            f"`{program} cache --json` on {host} returned {done.stdout[:200]!r} {done.stderr[:200]}"
        ) from e


def _sent(source: str, host: str, home: str) -> str:
    """A source's name on the host; a local file or folder is sent first unless its content is already there."""
    path = Path(source)
    if not path.exists():
        return source  # a named spec, a hub id, or a path on that machine
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as data:
            content = hashlib.file_digest(data, "sha256").hexdigest()
        digest.update(f"{file.relative_to(path.parent)} {content}\n".encode())
    folder = f"{home}/{digest.hexdigest()[:16]}"
    name = path.resolve().name
    there = f"{folder}/{name}"
    if _ssh(host, f"test -e {shlex.quote(there)}").returncode == 0:
        return there
    echo(f"{host}: sending {name}", err=True)
    final, partial = shlex.quote(folder), shlex.quote(f"{folder}.{uuid.uuid4().hex[:8]}.partial")
    mark = f"printf %s {shlex.quote(MARK.decode())} > {shlex.quote(str(lock_file(Path(folder))))}"
    unpack = (
        f"mkdir -p {partial} && tar xf - -C {partial} && {mark} &&"
        f" (test -e {final} && rm -rf {partial} || mv {partial} {final})"
    )
    process = subprocess.Popen(["ssh", host, unpack], stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        with tarfile.open(fileobj=process.stdin, mode="w|", dereference=True) as tar:
            tar.add(path.resolve(), arcname=name)
        process.stdin.close()
    except BrokenPipeError:
        pass
    if process.wait() != 0:
        raise InputError(f"sending {source} to {host} failed; check `ssh {host} true` and the free disk space there")
    return there


def _ssh(host: str, command: str, *, quiet: bool = True) -> subprocess.CompletedProcess:
    """Run a command on the host; unless `quiet`, its stderr is passed through."""
    try:
        done = subprocess.run(
            ["ssh", host, command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if quiet else None,
            text=True,
        )
    except OSError as e:
        raise InputError(f"--host needs ssh: {e.strerror}") from e
    if done.returncode == 255:
        said = (done.stderr or "").strip().splitlines()
        raise InputError(f"ssh to {host} failed{': ' + said[-1] if said else ''}; try `ssh {host} true`")
    return done
