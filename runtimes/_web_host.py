"""Hosts of ONNX Runtime Web: a Node process, or a page in headless Chromium. Both take commands and return answers.

A command is JSON; an answer is JSON and float32 values. Time is measured inside the host, by `performance.now()`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.parse
import weakref
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeformer.errors import ArtefactError, RuntimeUnavailable
from edgeformer.files.cache import cache_folder

ASSETS = Path(__file__).parent / "_web"
VERSION = "1.30.0"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT_S = 300
_TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html"}


class Host(Protocol):
    """Something that runs ONNX Runtime Web."""

    def ask(self, command: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        """The answer's JSON and its values, float32, flat."""
        ...

    def address(self, file: Path) -> str:
        """The name of an artefact's file in a command."""
        ...


def distribution() -> Path:
    """The `dist` folder of onnxruntime-web. EDGEFORMER_NODE_MODULES names another `node_modules`."""
    base = os.environ.get("EDGEFORMER_NODE_MODULES")
    modules = Path(base) if base else cache_folder("web") / "node_modules"
    return modules / "onnxruntime-web" / "dist"


def install_line() -> str:
    """The command that installs onnxruntime-web where `distribution` looks for it."""
    return f"npm install --prefix {cache_folder('web')} onnxruntime-web@{VERSION}"


def installed_version() -> str | None:
    """The installed version of onnxruntime-web, or None."""
    file = distribution().parent / "package.json"
    return json.loads(file.read_text())["version"] if file.exists() else None


def browser() -> str | None:
    """A Chromium's path, or None. EDGEFORMER_CHROMIUM names another."""
    named = os.environ.get("EDGEFORMER_CHROMIUM")
    mac = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    return named or next(filter(None, map(shutil.which, BROWSERS)), None) or (mac if Path(mac).exists() else None)


def _checked(head: dict[str, Any]) -> dict[str, Any]:
    if "error" in head:
        raise ArtefactError(f"ONNX Runtime Web: {head['error']}")
    return head


class Node:
    """A Node process; commands and answers over its pipes."""

    def __init__(self) -> None:
        node = shutil.which("node")
        if node is None:
            raise RuntimeUnavailable("Node is not installed; install it, or use the runtime web in a browser")
        self._process = subprocess.Popen(
            [node, str(ASSETS / "node.mjs"), str(distribution())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        weakref.finalize(self, self._process.kill)

    def address(self, file: Path) -> str:
        """Its path."""
        return str(file)

    def ask(self, command: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        """One command."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            head = json.loads(line) if line else None
            values = self._process.stdout.read(head["bytes"]) if head and head["bytes"] else b""
        except BrokenPipeError:
            head, values = None, b""
        except BaseException:
            self._process.kill()  # an answer that is still to come must not be taken for the next one's
            raise
        if head is None:
            raise ArtefactError(f"Node ended with status {self._process.wait()}")
        return _checked(head), np.frombuffer(values, np.float32)


class Browser:
    """A page in headless Chromium, served with the headers that enable threads (cross-origin isolation)."""

    def __init__(self, folder: Path, *, gpu: bool = False) -> None:
        program = browser()
        if program is None:
            raise RuntimeUnavailable("Chromium is not installed; install it, or use web:node")
        self._commands: queue.Queue[bytes] = queue.Queue()
        self._answers: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()
        roots = {"assets": ASSETS, "dist": distribution(), "model": folder}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(roots, self._commands, self._answers))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        profile, started = tempfile.mkdtemp(prefix="edgeformer-chromium-"), []
        weakref.finalize(self, _close, started, profile)
        flags = ["--headless=new", "--no-first-run", "--disable-extensions", "--disable-background-networking"]
        flags += ["--enable-unsafe-webgpu", "--enable-features=Vulkan"] if gpu else ["--disable-gpu"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to run as root otherwise
        page = f"http://127.0.0.1:{self._server.server_port}/assets/page.html"
        command = [program, *flags, f"--user-data-dir={profile}", page]
        try:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError as e:
            raise RuntimeUnavailable(f"{program} can't be started: {e.strerror}") from e
        started.append(self._process)
        self._program = program

    def address(self, file: Path) -> str:
        """Its URL."""
        return f"/model/{file.name if file.parent.name != 'onnx' else 'onnx/' + file.name}"

    def ask(self, command: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        """One command."""
        self._commands.put(json.dumps(command).encode())
        until = time.monotonic() + TIMEOUT_S
        while True:
            try:
                head, values = self._answers.get(timeout=1)
                return _checked(head), np.frombuffer(values, np.float32)
            except queue.Empty:
                if (status := self._process.poll()) is not None:
                    raise ArtefactError(f"{self._program} ended with status {status}; is it a Chromium?") from None
                if time.monotonic() > until:
                    self._process.kill()  # as below
                    raise ArtefactError(f"the page in Chromium did not answer for {TIMEOUT_S} s") from None
            except KeyboardInterrupt:
                self._process.kill()  # an answer that is still to come must not be taken for the next one's
                raise


def _close(started: list[subprocess.Popen], profile: str) -> None:
    for process in started:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        process.kill()
    shutil.rmtree(profile, ignore_errors=True)


def _handler(roots: dict[str, Path], commands: queue.Queue, answers: queue.Queue) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path == "/command":
                self._send(commands.get(), "application/json")
                return
            root, _, rest = self.path.lstrip("/").partition("/")
            file = (roots.get(root, Path("/nowhere")) / urllib.parse.unquote(rest.partition("?")[0])).resolve()
            if root not in roots or not file.is_relative_to(roots[root].resolve()) or not file.is_file():
                self.send_error(404)
                return
            self._send(file.read_bytes(), _TYPES.get(file.suffix, "application/octet-stream"))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answers.put((json.loads(urllib.parse.unquote(self.headers["X-Head"])), body))
            self._send(b"", "text/plain")

    return Handler
