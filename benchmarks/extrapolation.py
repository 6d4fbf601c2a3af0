"""How position schemes extrapolate: one small model per scheme, trained on bytes of Python's own library at one length, read at
1, 2, 4 and 8 times that. Everything but the positions is the same: shape, seed, order of the text.

    python benchmarks/extrapolation.py --steps 300 --plot build/extrapolation.html

Prints perplexity per byte on models/stdlib-5m/validation.txt, in windows of each length without overlap. The RoPE rows below
"rope" are that same model read with another scaling: of factor 2, 4 and 8 as the length asks.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from _library import library_sources

import edgeformer
from edgeformer.layers.alibi import Alibi
from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.learned import Learned
from edgeformer.layers.relative_bias import RelativeBias
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.layers.rope_linear import LinearScaling
from edgeformer.layers.rope_ntk import NtkScaling
from edgeformer.layers.rope_yarn import YarnScaling
from edgeformer.layers.shaw_attention import ShawAttention
from edgeformer.layers.sinusoidal import Sinusoidal

HELD_OUT = Path(__file__).parent.parent / "models" / "stdlib-5m" / "validation.txt"
TIMES = (1, 2, 4, 8)
HEADS, HEAD_DIM, LAYERS, VOCAB = 4, 32, 4, 256
SCHEMES = ("sinusoidal", "learned", "shaw", "t5 bias", "alibi", "rope", "nope")
BATCH, RATE = 16, 2e-3


def text() -> torch.Tensor:
    """Bytes of the standard library's sources, in a fixed order, without its tests and what is held out."""
    sources = library_sources(HELD_OUT.read_text(encoding="utf-8"), "asyncio", "email")
    return torch.frombuffer(bytearray("".join(sources).encode()), dtype=torch.uint8)


def spec(scheme: str, length: int) -> Decoder:
    """The model of a scheme. Its tables reach as far as it is read."""
    attention = GQA(heads=HEADS, kv_heads=HEADS, head_dim=HEAD_DIM)
    furthest, positions = length * max(TIMES), None
    match scheme:
        case "sinusoidal":
            positions = Sinusoidal(count=furthest)
        case "learned":
            positions = Learned(count=length)
        case "shaw":
            attention = ShawAttention(heads=HEADS, head_dim=HEAD_DIM, furthest=32)
        case "t5 bias":
            attention = replace(attention, position=RelativeBias(heads=HEADS, bidirectional=False))
        case "alibi":
            attention = replace(attention, position=Alibi(heads=HEADS))
        case "rope":
            attention = replace(attention, position=Rope(dim=HEAD_DIM))
    norm, width = RMSNorm(), HEADS * HEAD_DIM
    scale = (
        width**0.5 if scheme == "sinusoidal" else 1.0
    )  # as in the paper: a sinusoid is of size 1, an embedding is not
    block = Block(attention=attention, ffn=GLU(hidden=3 * width), norm=norm)
    blocks = (block,) * LAYERS
    shape = dict(vocab=VOCAB, width=width, context=furthest, blocks=blocks, norm=norm)
    return Decoder(**shape, positions=positions, embed_scale=scale)  # pyright: ignore


def stretched(model: Decoder, scaling: str, factor: int, length: int) -> Decoder:
    """The model with its rotation scaled."""
    made = {
        "linear": LinearScaling(factor=factor),
        "ntk": NtkScaling(factor=factor),
        "yarn": YarnScaling(factor=factor, original_context=length, temperature=0.1 * math.log(factor) + 1),
    }[scaling]
    block = model.blocks[0]
    attention = replace(block.attention, position=replace(block.attention.position, scaling=made))  # type: ignore
    return replace(model, blocks=(replace(block, attention=attention),) * LAYERS)  # type: ignore[call-arg]


def train(model: torch.nn.Module, data: torch.Tensor, length: int, steps: int) -> None:
    """AdamW with a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    picks = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(0, len(data) - length - 1, (BATCH,), generator=picks)
        ids = torch.stack([data[s : s + length + 1] for s in starts]).long()
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def perplexity(model: torch.nn.Module, data: torch.Tensor, length: int) -> float:
    """Of windows of `length` bytes, each read from its own beginning."""
    count = len(data) // length * length
    rows, total = data[:count].view(-1, length).long(), 0.0
    for chunk in rows.split(max(4096 // length, 1)):
        logits = model(chunk[:, :-1]).flatten(0, 1)
        total += torch.nn.functional.cross_entropy(logits, chunk[:, 1:].flatten(), reduction="sum").item()
    return math.exp(total / (len(rows) * (length - 1)))


def plot(results: dict[str, list[float | None]], length: int, file: Path) -> None:
    """Perplexity over length, a line per scheme, as an HTML or SVG file by its name."""
    import altair as alt

    values = [
        {"scheme": scheme, "length": length * times, "perplexity": value}
        for scheme, row in results.items()
        for times, value in zip(TIMES, row, strict=True)
        if value is not None
    ]
    found = [v["perplexity"] for v in values]
    scales = [
        alt.Scale(type="log", nice=False, domain=[low, high])
        for low, high in ((length, length * max(TIMES)), (0.97 * min(found), 1.03 * max(found)))
    ]
    chart = alt.Chart(alt.Data(values=values), title=f"trained at {length} bytes").mark_line(point=True)
    x, y = (alt.X("length:Q", scale=scales[0], title="bytes read"), alt.Y("perplexity:Q", scale=scales[1]))
    file.parent.mkdir(parents=True, exist_ok=True)
    made = chart.encode(x=x, y=y, color="scheme:N").properties(width=640, height=420)
    made.save(str(file), **({"inline": True} if file.suffix == ".html" else {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=128, help="bytes that the models are trained on at once")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="some of these, by commas")
    parser.add_argument("--plot", type=Path, help="write a plot, .html or .svg (needs edgeformer[report])")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    schemes = arguments.schemes.split(",")
    if unknown := ", ".join(s for s in schemes if s not in SCHEMES):
        parser.error(f"no such scheme: {unknown}; there are {', '.join(SCHEMES)}")
    torch.set_num_threads(2)
    length, data = arguments.length, text()
    held = torch.frombuffer(bytearray(HELD_OUT.read_bytes()[: 64 * length * max(TIMES)]), dtype=torch.uint8)
    results: dict[str, list[float | None]] = {}
    head = "".join(f"{f'{n} x':>9}" for n in TIMES)
    print(f"{len(data):,} bytes to learn from, {len(held):,} held out; {arguments.steps} steps at {length} bytes")
    print(f"{'scheme':<14}{head}   (perplexity per byte)", flush=True)
    for scheme in schemes:
        torch.manual_seed(0)
        begun, model = time.perf_counter(), edgeformer.build_torch(spec(scheme, length))
        train(model, data, length, arguments.steps)
        model.eval()
        rows: dict[str, list[float | None]] = {scheme: []}
        for times in TIMES:
            beyond = scheme == "learned" and times > 1
            rows[scheme].append(None if beyond else perplexity(model, held, length * times))
        if scheme == "rope":
            for scaling in ("linear", "ntk", "yarn"):
                found: list[float | None] = [rows[scheme][0]]
                for times in TIMES[1:]:
                    other = edgeformer.build_torch(stretched(model.layer, scaling, times, length))  # type: ignore
                    other.load_state_dict(model.state_dict())
                    found.append(perplexity(other.eval(), held, length * times))
                rows[f"rope, {scaling}"] = found
        for name, row in rows.items():
            cells = "".join(f"{'-' if v is None else f'{v:.2f}':>9}" for v in row)
            print(f"{name:<14}{cells}   {time.perf_counter() - begun:.0f} s", flush=True)
        results |= rows
    if arguments.json:
        arguments.json.write_text(json.dumps({"length": length, "times": TIMES, "perplexity": results}, indent=1))
    if arguments.plot:
        plot(results, length, arguments.plot)
        print(f"{arguments.plot} written")


if __name__ == "__main__":
    main()
