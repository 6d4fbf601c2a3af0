"""Parity checks of an artefact against its original, and the verdict stored in the artefact.

For decoders: 1. `full`, logits of one pass over the whole sequence; 2. `cached`, a prefill, then single steps; 3. `greedy`,
free-running greedy decoding. For encoders: every output, on padded batches. If the original has a tokenizer, also the text side:
`tokenizer`, token ids; `chat`, rendered conversations; `stop`, stop tokens; `answer`, greedy tokens of a short chat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeformer.checkpoint import bundle
from edgeformer.checkpoint.loading import LoadedModel, load
from edgeformer.checkpoint.manifest import Manifest
from edgeformer.errors import ArtefactError, InputError
from edgeformer.inference.lookup import first_that_opens, get, require
from edgeformer.inference.runtime import FORMATS, Options, Session
from edgeformer.inference.threads import physical_cores
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.spec import Model
from edgeformer.spec.serialization import digest
from edgeformer.spec.task import Task
from edgeformer.verification.chat_checks import chat_prompt, check_surroundings
from edgeformer.verification.reference import (
    LONGEST_PASS,
    Reference,
    greedy,
    make_reference,
    reference_runtime,
    run_cached,
    sample_ids,
)
from edgeformer.verification.verdict import FAIL, NEAR_TIE, PASS, UNCHECKED, Check, Verdict, overall
from edgeformer.verification.weight_checks import check_weights

LIMITS = {"fp32": (1e-4, 1e-5), "fp16": (1e-2, 5e-3), "bf16": (8e-2, 4e-2), "int8": (8e-2, 4e-2)}
"""Largest |difference| allowed, by an artefact's *compute* dtype: absolute + relative · max |reference|. fp16 arithmetic rounds
each step to 1e-3 of its magnitude, and five such steps are allowed; bf16 has three bits less, and so have activations
rounded to int8. The dtype of stored weights widens nothing: the reference uses the same bits."""

KL_LIMITS = {"fp16": 1e-3, "bf16": 2e-2, "int8": 2e-2}
"""Additional limit on the mean KL divergence of next-token distributions, in nats: single logits may differ widely, the whole
distribution may not."""


CHAT_TOKENS = 24
"""Number of tokens of the answer to a short chat."""


def limit_for(compute: str, reference: np.ndarray) -> float:
    """The largest difference allowed; see `LIMITS`."""
    absolute, relative = LIMITS[compute]
    return absolute + relative * float(np.abs(reference).max(initial=0.0))


def compare(name: str, ours: np.ndarray, reference: np.ndarray, compute: str) -> Check:
    """Compare logits [T, V] (or any outputs) with the reference's."""
    if ours.shape != reference.shape:
        return Check(name, FAIL, note=f"shape {list(ours.shape)} instead of {list(reference.shape)}")
    if not np.isfinite(ours).all():
        return Check(name, FAIL, note=f"{int((~np.isfinite(ours)).sum())} values are not finite")
    limit, worst = limit_for(compute, reference), float(np.abs(ours - reference).max())
    same = ours.argmax(-1) == reference.argmax(-1)
    divergence = None if same.all() else int(np.flatnonzero(~same.reshape(-1))[0])
    return Check(
        name,
        PASS if worst <= limit else FAIL,
        max_abs=worst,
        limit=limit,
        top1=float(same.mean()),
        kl_mean=kl_divergence(reference, ours),
        first_divergence=divergence,
    )


def compare_logits(name: str, ours: np.ndarray, reference: np.ndarray, compute: str) -> Check:
    """`compare`, and also limit the KL divergence of the next-token distributions (`KL_LIMITS`)."""
    check = compare(name, ours, reference, compute)
    allowed = KL_LIMITS.get(compute)
    if allowed is not None and check.kl_mean is not None and check.kl_mean > allowed:
        check.verdict, check.note = FAIL, f"mean KL {check.kl_mean:.1e} exceeds {allowed:.0e}"
    return check


def kl_divergence(reference: np.ndarray, ours: np.ndarray) -> float:
    """Mean over positions of KL(reference ‖ ours) in nats, both [T, V] logits."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(ours)
    return max(float((np.exp(p) * (p - q)).sum(-1).mean()), 0.0)


def distance(original: LoadedModel, made: Reference, threads: int) -> Check:
    """Distance of a reference with rounded or quantized weights from the original in float32, on the same tokens; unchecked."""
    options = Options(threads=threads, capacity=made.ids.shape[1])
    session = require(reference_runtime())[0].open(original, options)
    rows = []
    for n, ids in enumerate(made.ids[:, None]):
        if made.read is not None:
            session.source(made.read[n : n + 1])
        session.reset()
        rows.append(run_cached(session, ids, made.prefill) if made.start else session.forward(ids, all_positions=True))
    expected, ours = _flat(np.concatenate(rows)), _flat(made.logits)
    check = compare("quality", ours, expected, "fp32")
    check.verdict = UNCHECKED
    return check


def check_decoder(session: Session, reference: Reference, compute: str) -> list[Check]:
    """The checks `full`, `cached` and `greedy` of a decoder's session, on the reference's batch."""
    ids, prefill, depth, checks = reference.ids, reference.prefill, reference.depth, []
    if reference.read is not None:
        session.source(reference.read)
    if not session.all_positions:
        checks.append(Check("full", UNCHECKED, note="this runtime returns only the last position's logits"))
    elif reference.start:
        checks.append(Check("full", UNCHECKED, note=f"longer than {LONGEST_PASS} tokens: compared through the cache"))
    else:
        session.reset()
        full = session.forward(ids, all_positions=True)
        checks.append(compare_logits("full", _flat(full), _flat(reference.logits), compute))
    cached, expected = run_cached(session, ids, prefill, depth), reference.expected_cached()
    checks.append(compare_logits("cached", _flat(cached), _flat(expected), compute))
    tokens, _ = greedy(session, ids[:, : reference.prompt], reference.tokens.shape[1], depth)
    checks.append(compare_tokens(tokens, reference, compute))
    return checks


def _flat(logits: np.ndarray) -> np.ndarray:
    """[B, T, V] -> [B · T, V]."""
    return logits.reshape(-1, logits.shape[-1])


def compare_tokens(tokens: np.ndarray, reference: Reference, compute: str) -> Check:
    """Compare greedy tokens [B, G]: a difference is a near-tie if the reference's margin there is at most twice the limit."""
    different = tokens != reference.tokens[:, : tokens.shape[1]]
    if not different.any():
        return Check("greedy", PASS, top1=1.0)
    limit = 2 * limit_for(compute, reference.logits)
    # report the row whose first difference has the widest margin
    firsts = {row: int(np.flatnonzero(different[row])[0]) for row in np.flatnonzero(different.any(1))}
    row = max(firsts, key=lambda r: reference.margins[r, firsts[r]])
    first, margin = firsts[row], float(reference.margins[row, firsts[row]])
    right = reference.tokens[row, first]
    return Check(
        "greedy",
        NEAR_TIE if margin <= limit else FAIL,
        limit=limit,
        first_divergence=first,
        note=f"token {first}: {tokens[row, first]} instead of {right}, whose margin was {margin:.2e}",
    )


def check_server(session: Session, reference: Reference, compute: str) -> list[Check]:
    """Compare a server's text for each of the reference's prompts with the text of the reference's own tokens.

    Where they diverge, the server's token must be a near-tie in the reference's logits; the server is then queried again after
    the reference's token, and so on to the end. If more than a quarter of the tokens differ, even near-ties fail.
    """
    limit, most = 2 * limit_for(compute, reference.logits), max(1, reference.tokens.shape[1] // 4)
    return [_check_served(session, reference, row, limit, most) for row in range(len(reference.ids))]


def _check_served(session: Session, reference: Reference, row: int, limit: float, most: int) -> Check:
    prompt, tokens = reference.ids[row, : reference.prompt].tolist(), reference.tokens[row].tolist()
    done, parted, first, note = 0, 0, None, ""
    while done < len(tokens):
        before = prompt + tokens[:done]
        given, expected = session.serve(before, len(tokens) - done).text, session.text(before, tokens[done:])
        at = _parts_at(session, before, tokens[done:], given)
        if at is None:
            break
        logits = reference.logits[row, reference.prompt - 1 + done + at - reference.start]
        near = np.flatnonzero(logits >= logits.max() - limit)
        texts = [_whole(session.text(before, [*tokens[done : done + at], int(token)])) for token in near]
        parted, place = parted + 1, done + at
        first = place if first is None else first
        note = note or f"token {place}: {given[:40]!r} instead of {expected[:40]!r}"
        fitting = [text for text in texts if text and given.startswith(text)]
        if not fitting or parted > most:
            why = (
                f"differs at {parted} tokens"
                if fitting
                else f"token {place}: {given[:40]!r} instead of {expected[:40]!r}"
            )
            return Check("served", FAIL, limit=limit, first_divergence=first, note=why)
        done = place + 1
    verdict = NEAR_TIE if parted else PASS
    same = 1 - parted / len(tokens)
    return Check("served", verdict, limit=limit, top1=same, first_divergence=first, note=note)


def _whole(text: str) -> str:
    """Strip trailing replacement characters, which incomplete UTF-8 sequences leave."""
    return text.rstrip("\ufffd")


def _parts_at(session: Session, before: list[int], tokens: list[int], given: str) -> int | None:
    """Index of the first token at which the given text diverges, or None if it never does."""
    for n in range(len(tokens)):
        if not given.startswith(_whole(session.text(before, tokens[: n + 1]))):
            return n
    return None


def encoder_inputs(
    spec: Model, length: int, *, rows: int = 3, seed: int = 0, ids: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Make a batch: the second row is right-padded, the third left-padded, all others are full.

    ids: int64, repeated to fill the rows; random by default.
    """
    padding = spec.padding_id if isinstance(spec, Encoder) else None
    batch = sample_ids(spec.vocab, rows * length, seed, padding) if ids is None else np.resize(ids, rows * length)
    batch = batch.reshape(rows, length).astype(np.int64)
    mask = np.ones_like(batch)
    mask[1, length - length // 4 :] = 0
    mask[2, : length // 3] = 0
    if padding is not None:  # transformers finds padding by its id, not by the mask
        batch[mask == 0] = padding
    return {"input_ids": batch, "attention_mask": mask, "token_type_ids": np.zeros_like(batch)}


def check_encoder(session: Session, inputs: dict[str, np.ndarray], expected: dict, compute: str) -> list[Check]:
    """Compare every output of an encoder, ignoring padded positions; and, where the session pools the first real token, the
    embeddings of rows that begin with padding, whose first slot the reference pools."""
    outputs, checks = session.encode(inputs), []
    real = inputs["attention_mask"].astype(bool)
    for name, reference in expected.items():
        if session.encoded is not None and name not in session.encoded:
            continue
        ours = outputs[name]
        if reference.ndim == 3:
            ours, reference = ours[real], reference[real]
        elif session.pools_first_real:
            ours, reference = ours[real[:, 0]], reference[real[:, 0]]
        check = compare(name, ours, reference, compute)
        check.top1 = check.kl_mean = check.first_divergence = None  # meaningful for logits only
        checks.append(check)
    return checks


def default_runtime(kind: str, folder: Path) -> str:
    """The default runtime of an artefact: the first installed one that opens its format. A transformers checkpoint runs in
    transformers if that is installed, any other checkpoint in the reference runtime."""
    if kind != "checkpoint":
        return first_that_opens(kind)
    loaded = load(folder)
    made = get("transformers")[0]
    fits = made.unavailable() is None and made.declines_checkpoint(loaded) is None
    return "transformers" if fits and made.refuses(loaded.spec, Options()) is None else reference_runtime()


def rounds_to_int8(manifest: Manifest) -> bool:
    """Whether an artefact rounds activations, or the KV cache, to int8."""
    return manifest.get("kv") == "int8" or bool((manifest.get("quantization") or {}).get("accuracy_level"))


@dataclass(frozen=True)
class _Subject:
    """An artefact to verify. `original`: the model it was made from; `computed_from`: the weights the reference uses (the
    artefact's own if quantized), in `precision`; `open_for` opens a session with the given capacity in tokens."""

    folder: Path
    original: LoadedModel
    computed_from: LoadedModel
    precision: str
    compute: str
    context: int
    threads: int
    open_for: Callable[[int | None], Session]


def _encoder_checks(
    subject: _Subject, length: int, seed: int, ids: np.ndarray | None
) -> tuple[list[Check], Session, str]:
    """Return an encoder's checks, its session, and the reference runtime's name."""
    source, name = subject.computed_from, reference_runtime()
    inputs = encoder_inputs(source.spec, length, seed=seed, ids=ids)
    options = Options(threads=subject.threads, precision=subject.precision)
    expected = require(name)[0].open(source, options).encode(inputs)
    session = subject.open_for(None)
    checks = check_encoder(session, inputs, expected, session.compute or subject.compute)
    around = check_surroundings(subject.folder, subject.original, session)
    return [*checks, *(c for c in around if c.name == "tokenizer")], session, name


def _decoder_checks(
    subject: _Subject, length: int, generate: int, seed: int, ids: np.ndarray | None
) -> tuple[list[Check], Session, str]:
    """Return a generative model's checks, its session, and the reference runtime's name."""
    source, spec = subject.computed_from, subject.computed_from.spec
    ids = sample_ids(spec.vocab, length, seed) if ids is None else np.asarray(ids[:length], np.int64)
    prompt = min(max(length // 4, 1), 32)
    generate = min(generate, subject.context - prompt)
    read = sample_ids(spec.vocab, length, seed + 1)[None] if isinstance(spec, EncoderDecoder) else None
    prefix = prompt if spec.prefixed else None
    settings: dict[str, Any] = dict(precision=subject.precision, threads=subject.threads)
    reference = make_reference(source, ids, prompt=prompt, generate=generate, read=read, prefix=prefix, **settings)
    session = subject.open_for(max(length, prompt + generate))
    session.prefix_length = prefix
    if read is not None:
        session.source(read)
    checks = check_decoder(session, reference, session.compute or subject.compute)
    checks += check_surroundings(subject.folder, subject.original, session)
    if read is None and (chat := chat_prompt(subject.original)) is not None:
        size = chat.shape[1]
        count = min(CHAT_TOKENS, subject.context - size)
        answer = make_reference(source, chat[0], prompt=size, generate=count, **settings)
        session = subject.open_for(size + count)
        tokens, _ = greedy(session, chat, count)
        checks.append(replace(compare_tokens(tokens, answer, session.compute or subject.compute), name="answer"))
    return checks, session, reference.runtime


def verify(
    artefact: str | Path,
    against: LoadedModel,
    *,
    runtime: str | None = None,
    length: int = 160,
    generate: int = 64,
    threads: int | None = None,
    seed: int = 0,
    ids: np.ndarray | None = None,
    record: bool = True,
) -> Verdict:
    """Check an artefact against the model it was made from, and write the verdict into its manifest.

    Args:
        artefact: the artefact's folder.
        against: the original, from `edgeformer.load`.
        runtime: the runtime that runs the artefact; default: the first installed one that opens its format.
        length: tokens compared position by position.
        generate: greedy tokens compared.
        threads: compute threads for both sides; default: the number of physical cores.
        seed: seed of the random ids.
        ids: int64 [T], used instead of random ids (real text tests more).
        record: whether to write the verdict.

    Raises:
        ArtefactError: the folder is no artefact, is damaged, or was made from another spec.
        InputError: the runtime can't run it, or there are fewer than 4 tokens.
    """
    folder, threads = Path(artefact), threads or physical_cores()
    manifest = bundle.read_manifest(folder)
    bundle.check_files(folder, manifest)
    if digest(against.spec) != manifest["spec_digest"]:
        raise ArtefactError(
            f"{folder} was made from another architecture ({manifest['name']}, spec {manifest['spec_digest']}) than"
            f" {against.name} (spec {digest(against.spec)})"
        )
    precision, compute, kind = manifest["precision"], manifest["compute"], manifest.get("format", "onnx")
    compute = "int8" if rounds_to_int8(manifest) else compute
    runtime = runtime or default_runtime(kind, folder)
    made, variant = require(runtime)
    if not made.takes(kind):
        raise InputError(f"the runtime {runtime} opens {FORMATS[made.opens]}; {folder} is {FORMATS[kind]}")
    if (refusal := made.refuses(against.spec, Options())) is not None:
        raise InputError(f"the runtime {runtime} can't run {against.name}: {refusal}")
    checks: list[Check] = []
    stored, computed_from = precision, against
    if bundle.has_own_bits(precision):  # the reference uses the artefact's bits, so those must come from the original
        computed_from, precision = load(folder), "fp32"
        checks.append(check_weights(computed_from, against))
    length = min(length if ids is None else len(ids), manifest["context"])
    if length < 4:
        raise InputError(f"verification needs at least 4 tokens, got {length}")
    opened: Path | LoadedModel = load(folder) if kind == "checkpoint" else folder

    def open_for(capacity: int | None) -> Session:
        return made.open(opened, Options(threads=threads, capacity=capacity, variant=variant))

    subject = _Subject(folder, against, computed_from, precision, compute, manifest["context"], threads, open_for)
    if against.spec.task == Task.FEATURE_EXTRACTION:
        found, session, name = _encoder_checks(subject, length, seed, ids)
    else:
        found, session, name = _decoder_checks(subject, length, generate, seed, ids)
    checks += found
    notes = []
    if session.compute not in (None, compute):
        notes.append(f"computed in {session.compute} here, so {compute} arithmetic wasn't tested")
    verdict = Verdict(overall(checks), runtime, f"{name} fp32, weights as {stored}", stored, length, checks, notes)
    if record:
        try:
            bundle.write_manifest(folder, {**manifest, "verdict": verdict.as_dict()})
        except OSError as e:
            verdict.notes.append(f"can't write the verdict into {folder}: {e.strerror}")
    return verdict
