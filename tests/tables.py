"""Makes docs/architectures.md of what the tests measured.

`python tests/tables.py FOLDER [FILE]`, where FOLDER is what EDGEFORMER_TABLES named while they ran; an empty cell is an error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BACK_ENDS = {
    "torch": "torch",
    "numpy": "numpy",
    "onnx-cpu": "ONNX, function bodies",
    "onnx-portable": "ONNX, inline",
    "mlx": "MLX",
    "native": "native",
    "onnx-kernels": "ONNX, kernels",
    "coreai": "Core AI",
}
PARTIAL = {"native", "onnx-kernels", "coreai"}
"""Back ends that don't cover everything: "-" stands for what they refuse."""
WAYS = {"uncached": "one pass", "cached": "cached", "left-padded": "left-padded", "right-padded": "right-padded"}
DOCS = Path(__file__).parent.parent / "docs" / "architectures.md"


def rows(folder: Path) -> list[dict]:
    """What was recorded, by name."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def components(folder: Path) -> list[str]:
    """The table of components: the largest |difference| from float64."""
    lines = ["| component | " + " | ".join(BACK_ENDS.values()) + " |", "|---" * (len(BACK_ENDS) + 1) + "|"]
    found: dict[str, dict[str, float]] = {}
    for row in rows(folder / "components"):
        found.setdefault(row["row"].removesuffix("@coreai"), {}).update(row["errors"])
    for component, errors in found.items():
        cells = [_cell(name, errors.get(name), component) for name in BACK_ENDS]
        lines.append(f"| {component} | " + " | ".join(cells) + " |")
    return lines


def _cell(name: str, error: float | None, where: str) -> str:
    assert error is not None or name in PARTIAL, f"{where}: an empty cell"
    return "-" if error is None else f"{error:.0e}"


def families(folder: Path) -> list[str]:
    """The table of families: the largest |difference| of logits from transformers, over all configs of a family."""
    worst: dict[str, dict[tuple[str, str], float]] = {}
    configs: dict[str, set[str]] = {}
    for row in rows(folder / "families"):
        family, _, case = row["row"].partition("@")
        case = case.removesuffix("-coreai").removesuffix("-AutoModel").removesuffix("-AutoModelForMaskedLM")
        configs.setdefault(family, set()).add(case)
        for kind, error in row["errors"].items():
            key = tuple(kind.split(" ", 1))
            cell = worst.setdefault(family, {})
            cell[key] = max(cell.get(key, 0.0), error)  # type: ignore[index, arg-type]
    lines = ["| family | configs | way | " + " | ".join(BACK_ENDS.values()) + " |", "|---" * (len(BACK_ENDS) + 3) + "|"]
    for family, found in sorted(worst.items()):
        for way, label in WAYS.items():
            cells = [found.get((name, way)) for name in BACK_ENDS]  # type: ignore[arg-type]
            if any(cell is not None for cell in cells):
                texts = " | ".join(_cell(n, c, f"{family}, {way}") for n, c in zip(BACK_ENDS, cells, strict=True))
                lines.append(f"| {family} | {len(configs[family])} | {label} | {texts} |")
    return lines


def heads(folder: Path) -> list[str]:
    """The table of encoders' heads: the largest |difference| from transformers, over all configs of a family and head."""
    worst: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows(folder / "heads"):
        family, _, head = row["row"].partition("@")
        cell = worst.setdefault((family, head.partition("@")[0]), {})
        for name, error in row["errors"].items():
            cell[name] = max(cell.get(name, 0.0), error)
    shown = [name for name in BACK_ENDS if name != "coreai"]
    lines = ["| family | head | " + " | ".join(BACK_ENDS[n] for n in shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for (family, head), errors in sorted(worst.items()):
        cells = [_cell(name, errors.get(name), f"{family}, {head}") for name in shown]
        lines.append(f"| {family} | {head} | " + " | ".join(cells) + " |")
    return lines


INTRODUCTION = """# What was checked, architecture by architecture

Made by the tests (`EDGEFORMER_TABLES=$PWD/tables bash tests/run && python tests/tables.py tables`); digits change with the
machine, the limits do not.

## Families

Largest |difference| of logits from transformers in float32 (of chatglm, minicpm and openelm, which transformers has no class for:
from the published formula), over all odd configs of the family; the limit is 1e-4. Cached: a prefill of 100 tokens and 60 single
steps. Encoders have no cache; of encoder–decoder models, the text that is read is padded. native, and ONNX Runtime with the
native library (ONNX, kernels): of the configs that these cover; -: none. Core AI (on Linux): a decoder takes one sequence without
padding, 60 tokens in two chunks and 40 single steps.
"""
HEADS = """
## Heads of encoders

Largest |difference| of each head's outputs from transformers in float32; the limit is 1e-4. Masked-token heads are in the table
above. -: the native library has no instruction for it.
"""
BETWEEN = """
## Components

Largest |difference| of logits from float64, in a model of two such blocks, a prefill of 14 tokens and 10 single steps of a
left-padded batch. Function bodies: the target `cpu`, where a fused operator of ONNX Runtime may stand for one.
"""


def page(folder: Path) -> str:
    """The whole document."""
    return "\n".join([INTRODUCTION, *families(folder), HEADS, *heads(folder), BETWEEN, *components(folder), ""])


if __name__ == "__main__":
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else DOCS
    target.write_text(page(Path(sys.argv[1])), encoding="utf-8")
    print(f"{target} written")
