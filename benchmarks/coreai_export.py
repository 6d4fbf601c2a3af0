"""Export to Core AI: `python benchmarks/coreai_export.py MODEL [ROUNDS]`. Time and peak memory of whole processes, in turn.

Ours, and the same spec through `build_torch`, torch.export and coreai-torch, without running it. Needs coreai-core, torch and
coreai-torch (`pip install --no-deps coreai-torch==0.4.3`); without the latter, ours alone. fp32, a decoder whose caches all have
one size.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

THROUGH_TORCH = """
import sys
from pathlib import Path
import coreai.authoring
import torch
from coreai_torch import TorchConverter, get_decomp_table
import edgeformer
from edgeformer.spec import layers

module = edgeformer.build_torch(edgeformer.load(sys.argv[1])).eval()
caches = [(path, layer.cache()) for path, layer, _ in layers(module.layer) if layer.cache()]
heads, dim = caches[0][1]["k"]


class Sliced:
    def __init__(self, k, v, past, end):
        self.buffers, self.past, self.end = {"k": k, "v": v}, past, end

    def length(self):
        return self.past

    def append(self, path, tensors):
        i = [p for p, _ in caches].index(path)
        for name, new in tensors.items():
            self.buffers[name][i, :, :, self.past : self.end] = new
        return tuple(self.buffers[name][i, :, :, : self.end] for name in tensors)


class Step(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = module

    def forward(self, input_ids, position_ids, k_cache, v_cache):
        end = position_ids.shape[1]
        past = end - input_ids.shape[1]
        torch._check(past >= 0)
        torch._check(end <= k_cache.shape[3])
        return self.inner(input_ids, position_ids=position_ids[:, past:], store=Sliced(k_cache, v_cache, past, end))


buffer = torch.zeros(len(caches), 1, heads, 64, dim)
dynamic, capacity = torch.export.Dim.DYNAMIC, torch.export.Dim("capacity", min=4, max=4096)
shapes = ({1: dynamic}, {1: dynamic}, {3: capacity}, {3: capacity})
given = (torch.zeros(1, 5, dtype=torch.int64), torch.arange(9)[None], buffer, buffer.clone())
with torch.no_grad():
    program = torch.export.export(Step(), given, dynamic_shapes=shapes, strict=False)
    program = program.run_decompositions(get_decomp_table())
converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
names = dict(input_names=["input_ids", "position_ids"], state_names=["keyCache", "valueCache"], output_names=["logits"])
converter.add_exported_program(program, **names)
converter.to_coreai().save_asset(Path(sys.argv[2]) / "torch.aimodel")
"""


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak megabytes of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:4]} failed with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / (1 << 10 if sys.platform == "linux" else 1 << 20)


def main(model: str, rounds: int) -> None:
    """Run and print."""
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-m", "edgeformer", "export", model, "--to", "coreai", "--precision", "fp32", "--force"]
        commands = {"edgeformer": [*ours, "-o", f"{folder}/ours"]}
        if importlib.util.find_spec("coreai_torch") is not None:
            commands["torch.export + coreai-torch"] = [sys.executable, "-c", THROUGH_TORCH, model, folder]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                found[name].append(run(command))
        size = sum(f.stat().st_size for f in Path(folder, "ours").rglob("*.mlirb")) / (1 << 20)
        for name, each in found.items():
            seconds, memory = ([x[n] for x in each] for n in (0, 1))
            print(
                f"{name}: {statistics.median(seconds):.1f} s ({min(seconds):.1f} - {max(seconds):.1f}), peak"
                f" {statistics.median(memory):.0f} MB, {statistics.median(memory) / size:.2f} x the file"
            )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
