"""The `web` target in transformers.js: under Node, and in a real headless browser (WebAssembly).

`bash tests/web/install` gets transformers.js by npm and, as root on Debian, Chromium; what is missing is skipped.
"""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, STDLIB, saved, small_spec

from edgeformer import load
from edgeformer.api import export
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.errors import ExportError
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options
from edgeformer.verification.reference import greedy

WEB = ROOT / "tests" / "web"
MODULES = WEB / "node_modules"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
node = pytest.mark.skipif(
    shutil.which("node") is None or not (MODULES / "@huggingface").exists(), reason="run tests/web/install (Node, npm)"
)
browser = pytest.mark.skipif(
    BROWSER is None or not (MODULES / "@huggingface").exists(), reason="run tests/web/install (Chromium)"
)
PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "q4": "q4", "q4f16": "q4f16", "q8": "q8"}
TEXT = "def main(argv=None):\n    parser = argparse.ArgumentParser("
COUNT = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    for precision in PRECISIONS:
        export(load(STDLIB), folder / precision, target="web", precision=precision)
    return folder


def expected(folder: Path, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens and their margins of the same bits in float32."""
    session = require("numpy")[0].open(load(folder), Options())
    tokens, margins = greedy(session, np.array([ids]), COUNT)
    return tokens[0], margins[0]


def assert_tokens(tokens: list[int], folder: Path, ids: list[int], precision: str) -> None:
    """Equal, or in half precision different first at a near-tie (a margin below 0.05)."""
    right, margins = expected(folder, ids)
    different = np.flatnonzero(np.array(tokens) != right)
    if len(different):
        assert precision.endswith("f16") or precision == "fp16"
        assert margins[different[0]] < 0.05


def test_the_folder(folders):
    """What transformers.js looks for, and nothing that it would stumble over."""
    for precision, suffix in {"fp32": "", "fp16": "_fp16", "q4": "_q4", "q4f16": "_q4f16", "q8": "_quantized"}.items():
        folder = folders / precision
        assert (folder / "onnx" / f"model{suffix}.onnx").exists()
        assert (folder / "onnx" / f"model{suffix}.onnx_data").exists()
        config = json.loads((folder / "config.json").read_text())
        assert config["transformers.js_config"] == {
            "use_external_data_format": {f"model{suffix}.onnx": 1},
            "dtype": precision,
        }
        assert config["model_type"] == "llama"
        assert load(folder).weights is not None


def test_a_spec_without_a_config(tmp_path):
    """transformers.js needs a model type: a Llama-shaped spec gets one, any other is refused."""
    loaded, _ = saved(small_spec(), tmp_path / "m")
    export(loaded, tmp_path / "w", target="web")
    assert json.loads((tmp_path / "w" / "config.json").read_text())["model_type"] == "llama"
    other, _ = saved(small_spec(softcap=3.0), tmp_path / "n")
    with pytest.raises(ExportError, match="no model type that its reader knows"):
        export(other, tmp_path / "x", target="web")
    with pytest.raises(ExportError, match="doesn't support the precision bf16"):
        export(loaded, tmp_path / "x", target="web", precision="bf16")
    with pytest.raises(ExportError, match="use --weights copy"):
        export(loaded, tmp_path / "x", target="web", weights="link")


@node
@pytest.mark.parametrize("precision", PRECISIONS)
def test_node(folders, precision):
    ids = read_tokenizer(STDLIB).encode(TEXT)
    command = ["node", "node.mjs", str(folders / precision), PRECISIONS[precision], json.dumps(ids), str(COUNT)]
    run = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert_tokens(json.loads(run.stdout.splitlines()[-1])["tokens"], folders / precision, ids, precision)


@node
def test_the_chat_contract_under_node(tmp_path):
    """Ids, a rendered chat and the end ids as transformers.js reads them: added tokens, template and defaults of the source."""
    from chat_model import chat_model

    from edgeformer.checkpoint.companions.chat import chat_templates, render
    from edgeformer.checkpoint.companions.special import special_ids
    from edgeformer.checkpoint.companions.texts import texts_of
    from edgeformer.verification.chat_checks import CHATS

    chat_model(tmp_path / "m")
    loaded, tokenizer = load(tmp_path / "m"), read_tokenizer(tmp_path / "m")
    export(loaded, tmp_path / "w", target="web")
    texts = [t for t in texts_of(tokenizer) if t]
    (tmp_path / "request.json").write_text(json.dumps({"texts": texts, "messages": CHATS[1]}))
    command = ["node", "text.mjs", str(tmp_path / "w"), str(tmp_path / "request.json")]
    run = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    for text, bare, whole in zip(texts, said["bare"], said["whole"], strict=True):
        assert bare == tokenizer.encode(text, special=False) and whole == tokenizer.encode(text), text
    assert said["chat"] == render(chat_templates(loaded.around)["default"], CHATS[1], tokenizer.named)
    assert said["ends"] == list(special_ids(loaded.around).eos)


class _Handler(SimpleHTTPRequestHandler):
    """Serves the page, the modules and the models; takes the answer."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def __init__(self, *arguments, page, **options):
        self.page = page
        super().__init__(*arguments, **options)

    def translate_path(self, path):
        path = path.split("?")[0]
        for prefix, place in (("/models/", self.page["models"]), ("/modules/", MODULES), ("/", WEB)):
            if path.startswith(prefix):
                return str(Path(place) / path.removeprefix(prefix))
        return str(WEB)

    def do_GET(self):
        if self.path != "/settings":
            return super().do_GET()
        body = json.dumps(self.page["settings"]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.page["answer"] = json.loads(body)
        self.page["done"].set()

    def log_message(self, *_):
        pass


@browser
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "q4"])
def test_browser(folders, precision):
    ids = read_tokenizer(STDLIB).encode(TEXT)
    settings = {"folder": precision, "dtype": PRECISIONS[precision], "ids": ids, "count": COUNT, "text": TEXT}
    page = {"models": folders, "settings": settings, "done": threading.Event(), "answer": None}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, page=page))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [
            "--headless=new",
            "--disable-gpu",
            "--no-first-run",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]
        if os.name == "posix" and os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses its sandbox to root
        url = f"http://127.0.0.1:{server.server_port}/page.html"
        process = subprocess.Popen([str(BROWSER), *flags, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert page["done"].wait(120), "the page gave no answer"
        finally:
            process.kill()
            process.wait()
            server.shutdown()
    answer = page["answer"]
    assert "error" not in answer, answer
    assert "Chrome" in answer["agent"]
    assert answer["text"] == ids  # the tokenizer that was shipped, too
    assert_tokens(answer["tokens"], folders / precision, ids, precision)
