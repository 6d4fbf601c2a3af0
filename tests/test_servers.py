"""Servers as runtimes: measured as their clients see them, their text compared, and refused where counts would not be equal."""

from __future__ import annotations

import http.server
import json
import threading
import time

import numpy as np
import pytest
from support import STDLIB

from edgeformer import api
from edgeformer.checkpoint.loading import load
from edgeformer.errors import InputError, RuntimeUnavailable
from edgeformer.inference.lookup import get, require
from edgeformer.inference.runtime import Options
from edgeformer.measure.settings import Settings
from edgeformer.verification import parity
from edgeformer.verification.reference import continuation, greedy, sample_batch


@pytest.fixture(scope="module")
def loaded():
    return load(STDLIB)


class FakeServer(http.server.BaseHTTPRequestHandler):
    """OpenAI's completions, answered by our own numpy session; `wrong` changes the first token."""

    ends_with_token = False
    session, tokenizer, wrong, takes_ids, garbage, swapped = None, None, False, True, None, None

    def log_message(self, *_):
        """Quiet."""

    def do_GET(self):
        self._json({"data": [{"id": "a-model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"]
        if isinstance(prompt, list) and not self.takes_ids:
            self.send_error(400, "prompt must be a string")
            return
        ids = prompt if isinstance(prompt, list) else self.tokenizer.encode(prompt, add_special_tokens=False).ids
        if not body["stream"]:
            self._json({"choices": [{"text": "x"}], "usage": {"prompt_tokens": len(ids)}})
            return
        with LOCK:
            tokens = [int(t) for t in greedy(self.session, np.array([ids]), body["max_tokens"])[0][0]]
        if self.wrong:
            tokens[0] = (tokens[0] + 1) % 4096
        if self.swapped is not None and 0 <= self.swapped[0] - len(ids) < len(tokens):
            tokens[self.swapped[0] - len(ids)] = self.swapped[1]
        self.send_response(200)
        self.end_headers()
        said = self.tokenizer.decode(ids, skip_special_tokens=False)
        for n in range(len(tokens)):
            now = self.tokenizer.decode(ids + tokens[: n + 1], skip_special_tokens=False)
            last = n + 1 == len(tokens) and self.ends_with_token
            event = {
                "choices": [{"text": self.garbage or now[len(said) :], "finish_reason": "length" if last else None}]
            }
            said = now
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.001)
        self.wfile.write(b'data: {"choices": [{"text": "", "finish_reason": "length"}]}\n\ndata: [DONE]\n\n')

    def _json(self, data):
        text = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


LOCK = threading.Lock()


@pytest.fixture
def server(loaded):
    import tokenizers

    FakeServer.session = require("numpy")[0].open(loaded, Options(threads=1))
    FakeServer.tokenizer = tokenizers.Tokenizer.from_file(str(STDLIB / "tokenizer.json"))
    FakeServer.wrong, FakeServer.takes_ids, FakeServer.garbage, FakeServer.ends_with_token = False, True, None, False
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeServer)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/v1"
    running.shutdown()


SERVED = Settings(prompts=(12,), gens=(6,), rounds=2, threads=1, concurrency=(1, 3))


def test_a_server_is_measured_and_its_text_compared(server):
    _, done = api.bench(str(STDLIB), runtimes=[server, "numpy"], settings=SERVED)
    assert [len(s.rows) for s in done.shapes] == [3, 2]  # numpy has no clients
    for row in done.rows:
        assert row.status == "ok" and row.verdict == "pass", row.error or row.checks
    one, several = (next(r for r in s.rows if r.plan.runtime == server) for s in done.shapes)
    assert len(one.rounds[0]["prefill_ns"]) == 1 and len(several.rounds[0]["prefill_ns"]) == 3
    assert len(several.rounds[0]["decode_ns"]) == 3 * 5 and several.rounds[0]["wall_ns"] > 0
    assert one.facts["prompt_as"] == "ids" and one.memory["peak_rss_bytes"] is None and one.cpu_per_wall() is None


def test_a_token_that_ends_the_answer_counts(server, loaded):
    """vLLM's last event holds a token and says why it ends; with one token that is all there is."""
    FakeServer.ends_with_token = True
    session = get("http")[0].open(loaded, Options(variant=server.removeprefix("http:")))
    for count in (1, 4):
        assert len(session.serve(sample_batch(4096, 1, 12)[0].tolist(), count).arrivals_ns) == count


def test_rates_of_a_server_are_of_the_times_between_tokens(server):
    from edgeformer.measure import machine
    from edgeformer.measure.record import records

    settings = Settings(prompts=(12,), gens=(4,), rounds=2, threads=1, concurrency=(2,))
    spec, done = api.bench(str(STDLIB), runtimes=[server], settings=settings)
    rates = {"cpu": {"bandwidth": [[10**6, 1e10]], "fp32_flops": 1e11}}
    made = records(done, spec, machine=machine.facts(), name="m", settings=settings, rates=rates)
    decode = next(r for r in made if r["n_gen"] and not r["twin"])
    row = done.rows[0]
    each = [len(r["decode_ns"]) * 1e9 / sum(r["decode_ns"]) for r in row.rounds]
    assert len(row.rounds[0]["decode_ns"]) == 2 * 3 and decode["samples_ts"] == pytest.approx(each)
    wall = sorted(r["wall_ns"] for r in row.rounds)
    assert decode["throughput_ts"] == pytest.approx(2 * 4 * 1e9 / (sum(wall) / 2))
    assert decode["served"] and decode["roofline_frac"] is None and decode["energy_j"] is None


def test_a_server_that_says_something_else_is_not_ranked(server):
    FakeServer.wrong = True
    settings = Settings(prompts=(12,), gens=(6,), rounds=1, threads=1, twice=False)
    _, done = api.bench(str(STDLIB), runtimes=[server], settings=settings)
    assert done.rows[0].verdict == "fail" and not done.rows[0].ranked and "instead of" in done.rows[0].checks[0]["note"]


@pytest.mark.parametrize("seed", range(4))
def test_garbage_is_never_a_near_tie(server, loaded, seed):
    """Whatever the reference's margins are: what is said must be a token that it found nearly as good."""
    FakeServer.garbage = "GARBAGE "
    session = get("http")[0].open(loaded, Options(variant=server.removeprefix("http:")))
    reference = continuation(loaded, sample_batch(4096, 2, 8, seed), 6, precision="fp32", threads=1)
    assert {c.verdict for c in parity.check_server(session, reference, "bf16")} == {"fail"}


def test_a_real_near_tie_of_a_server(server, loaded):
    """Another token where it is nearly as good as the best; after it the reference's own continuation is asked for. The same
    token where it is not near fails."""
    reference = continuation(loaded, sample_batch(4096, 1, 12), 6, precision="fp32", threads=1)
    session = get("http")[0].open(loaded, Options(variant=server.removeprefix("http:")))
    prompt, tokens = reference.ids[0, :12].tolist(), reference.tokens[0].tolist()
    right = session.text(prompt, tokens[:3])
    said = ((t, session.text(prompt, [*tokens[:2], t])) for t in range(100, 4096))
    other = next(t for t, text in said if text.isascii() and not right.startswith(text) and not text.startswith(right))
    FakeServer.swapped = (12 + 2, other)
    try:
        (far,) = parity.check_server(session, reference, "fp32")
        reference.logits[0, 11 + 2, other] = reference.logits[0, 11 + 2].max() - 1e-4
        (near,) = parity.check_server(session, reference, "fp32")
    finally:
        FakeServer.swapped = None
    assert (far.verdict, far.first_divergence) == ("fail", 2)
    assert (near.verdict, near.first_divergence) == ("near-tie", 2) and near.top1 == pytest.approx(5 / 6)


def test_servers_that_cannot_be_measured(server, loaded):
    runtime, _ = get("http")
    FakeServer.takes_ids = False
    session = runtime.open(loaded, Options(variant=server.removeprefix("http:")))
    assert not session.as_ids
    with pytest.raises(InputError, match="takes prompts as text only, and the text of these 12 tokens encodes to"):
        session.serve(sample_batch(4096, 1, 12)[0].tolist(), 4)
    text = session.tokenizer.encode("def main():\n    return", special=False)
    assert len(session.serve(text, 4).arrivals_ns) == 4
    with pytest.raises(RuntimeUnavailable, match=r"no answer from http://127.0.0.1:9/v1: .* Is the server running"):
        runtime.open(loaded, Options(variant="//127.0.0.1:9/v1"))
    with pytest.raises(InputError, match="is not a server URL"):
        runtime.open(loaded, Options(variant="///v1"))
    assert "chosen by its URL" in runtime.refuses(loaded.spec, Options())
    assert get("http://localhost:1/v1")[1] == "//localhost:1/v1"
