"""A server with OpenAI's completions API, chosen by its URL: `--runtimes http://localhost:8080/v1`.

It is measured as a client sees it: time to first token (TTFT), time between tokens (ITL), and with `--concurrency` several
clients at once. Prompts are sent as token ids (llama.cpp's server, vLLM, text-generation-inference take them); to servers that
take only text (mlx-lm's), as text that must encode to the same number of tokens. Generation is greedy. The server's text is
compared with the text of the reference's tokens, since a server returns no logits.

`http:https://host/v1` reaches servers behind TLS. An API key is read from EDGEFORMER_API_KEY.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from edgeformer.checkpoint.companions.tokenizer import has_tokenizer, load_tokenizer
from edgeformer.checkpoint.loading import LoadedModel
from edgeformer.errors import InputError, RuntimeUnavailable
from edgeformer.files.json_file import MAX_BYTES, parse_json
from edgeformer.files.quoting import plain, shown
from edgeformer.inference import runtime as base
from edgeformer.inference.runtime import Options, Served, Session
from edgeformer.spec.task import Task

TIMEOUT_S, MAX_LINE = 600, 1_000_000


def parsed(variant: str) -> tuple[str, SplitResult]:
    """A server's URL, as written and split into its parts.

    Raises:
        InputError: `variant` is not a URL with a host.
    """
    url = variant if "://" in variant else f"http:{variant}"
    parts = None
    try:
        parts = urlsplit(url.rstrip("/"))
        sound = bool(parts.hostname) and (parts.port or 80) > 0 and bool(parts.hostname.encode("idna"))  # type: ignore[union-attr]
    except ValueError:  # a port that isn't a number, unclosed brackets, a host name that is too long
        sound = False
    if parts is None or not sound:
        raise InputError(f"{shown(url)} is not a server URL; give one such as http://localhost:8080/v1")
    return url, parts


class ServerSession(Session):
    """A client of a server; every request opens its own connection, as separate clients would."""

    served = True

    def __init__(self, loaded: LoadedModel, options: Options):
        super().__init__(loaded.spec, options)
        url, self.url = parsed(options.variant)
        if not has_tokenizer(loaded.around):
            raise InputError(f"{loaded.name} has no tokenizer, which is needed to compare a server's text")
        self.tokenizer = load_tokenizer(loaded.around)
        listed = self._get("/models").get("data") or []
        first = listed[0] if isinstance(listed, list) and listed else None
        if not isinstance(first, dict) or not isinstance(first.get("id"), str):
            raise RuntimeUnavailable(f"the server at {url} lists no model")
        self.model = os.environ.get("EDGEFORMER_SERVED_MODEL") or first["id"]
        self.as_ids = self._takes_ids()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        return kind(self.url.hostname or "", self.url.port, timeout=TIMEOUT_S)

    def _headers(self) -> dict[str, str]:
        key = os.environ.get("EDGEFORMER_API_KEY")
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = self._connect()
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, self.url.path + path, data, self._headers())
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as e:
            connection.close()
            raise RuntimeUnavailable(f"no answer from {self.url.geturl()}: {e}. Is the server running?") from e
        if response.status != 200:
            text = response.read(500).decode(errors="replace")
            connection.close()
            raise InputError(f"{self.url.geturl()}{path} answered {response.status}: {plain(text)}")
        return connection, response

    def _get(self, path: str) -> dict[str, Any]:
        connection, response = self._ask("GET", path)
        try:
            return self._json(response, path)
        finally:
            connection.close()

    def _json(self, response: http.client.HTTPResponse, path: str) -> dict[str, Any]:
        """The JSON object of an answer.

        Raises:
            InputError: the answer is not a JSON object of at most 8 MB, or the connection broke.
        """
        where = f"{self.url.geturl()}{path}"
        try:
            data = response.read(MAX_BYTES + 1)
        except (OSError, http.client.HTTPException) as e:
            raise InputError(f"{where} closed the connection before its answer was complete: {e}") from e
        if len(data) > MAX_BYTES:
            raise InputError(
                f"{where} answered with more than {MAX_BYTES:,} bytes: it is not an OpenAI-compatible server"
            )
        answer = parse_json(data, f"the answer of {where}", InputError)
        if not isinstance(answer, dict):
            raise InputError(f"{where} did not answer with a JSON object: it is not an OpenAI-compatible server")
        return answer

    def _body(self, prompt: Any, gen: int) -> dict[str, Any]:
        # cache_prompt, ignore_eos: options of llama.cpp's server and vLLM; others ignore unknown ones
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": gen,
            "temperature": 0,
            "stream": True,
            "cache_prompt": False,
            "ignore_eos": True,
        }

    def _takes_ids(self) -> bool:
        """Whether the server takes prompts as token ids: tried with one, whose token count must come back as its length."""
        try:
            connection, response = self._ask("POST", "/completions", {**self._body([5, 6, 7], 1), "stream": False})
        except InputError:
            return False
        try:
            usage = self._json(response, "/completions").get("usage")
        finally:
            connection.close()
        return not isinstance(usage, dict) or usage.get("prompt_tokens", 3) == 3

    def _prompt(self, ids: list[int]) -> Any:
        if self.as_ids:
            return ids
        text = self.tokenizer.decode(ids, special=True)
        again = self.tokenizer.encode(text, special=False)
        if len(again) != len(ids):
            raise InputError(
                f"{self.url.geturl()} takes prompts as text only, and the text of these {len(ids)} tokens encodes to"
                f" {len(again)}: token counts would differ between rows. Use a server that takes token ids"
            )
        return text

    def serve(self, prompt, gen):
        asked = self._prompt(prompt)
        start = time.perf_counter_ns()
        connection, response = self._ask("POST", "/completions", self._body(asked, gen))
        arrivals, parts = [], []
        try:
            while line := response.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE or len(arrivals) > 2 * gen + 16:
                    raise InputError(
                        f"{self.url.geturl()} streams more than was requested: an overlong line, or more than {gen} tokens"
                    )
                if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
                    continue
                choice = self._choice(line[5:])
                text = choice.get("text") or ""
                if not isinstance(text, str):
                    raise InputError(f"{self.url.geturl()} answered with {shown(text)} as text")
                if not choice or (choice.get("finish_reason") and not text):  # the final event, without a token
                    continue
                arrivals.append(time.perf_counter_ns())
                parts.append(text)
        except (OSError, http.client.HTTPException) as e:
            raise InputError(f"{self.url.geturl()} closed the connection before its answer was complete: {e}") from e
        finally:
            connection.close()
        if len(arrivals) < max(gen - 1, 1):
            raise InputError(
                f"{self.url.geturl()} streamed {len(arrivals)} of {gen} tokens (or several in one event): ITL can't be measured"
            )
        return Served("".join(parts), start, arrivals)

    def _choice(self, data: bytes) -> dict[str, Any]:
        """The first choice of a streamed event; empty if the event has none."""
        where = self.url.geturl()
        event = parse_json(data, f"a line that {where} streamed", InputError)
        if not isinstance(event, dict) or "error" in event:
            raise InputError(f"{where} answered: {shown(event.get('error') if isinstance(event, dict) else event)}")
        choices = event.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
            raise InputError(f"{where} answered with {shown(choices)} as choices")
        return choices[0] if choices else {}

    def text(self, prompt, tokens):
        """Tokens are decoded together with the prompt, whose last characters may depend on what follows."""
        before = self.tokenizer.decode(prompt, special=True)
        return self.tokenizer.decode(prompt + tokens, special=True)[len(before) :]

    def peak_memory(self):
        """Unknown: it is the server's memory."""
        return {"peak_rss_bytes": None, "rss_source": None, "peak_footprint_bytes": None}

    def facts(self):
        return {
            "provider": self.url.geturl(),
            "served_model": self.model,
            "prompt_as": "ids" if self.as_ids else "text",
        }


class Runtime(base.Runtime):
    """Any OpenAI-compatible server; the variant is its URL without `http:`."""

    opens = "checkpoint"
    tasks = (Task.TEXT_GENERATION,)
    packages = ("tokenizers",)
    served = True

    def has(self, variant):
        return variant.startswith(("//", "https://"))

    def refuses(self, spec, options):
        if not options.variant:
            return "the server's URL is missing; a server is chosen by its URL: --runtimes http://localhost:8080/v1"
        parsed(options.variant)
        return super().refuses(spec, options)

    def open(self, source: Path | LoadedModel, options: Options) -> Session:
        assert isinstance(source, LoadedModel)
        return ServerSession(source, options)
