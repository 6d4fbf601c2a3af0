"""Makes docs/formats.md and README's matrix: which format holds which family, under which native type, and what its own runtime
computed. `--check` says whether README is up to date.

`python tests/formats_page.py FOLDER [FILE]`, where FOLDER is what EDGEFORMER_TABLES named while the tests ran; without FOLDER it
prints only how many of the named models each format holds.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from encoder_cases import ENCODER_DECODERS, ENCODERS, encoder_settings, pair_settings
from family_cases import CASES, settings

from edgeformer import discover, load
from edgeformer.checkpoint.loading import LoadedModel, named_specs
from edgeformer.errors import EdgeformerError
from edgeformer.exporters.gguf.fitting import architecture
from edgeformer.exporters.hf.config import family_config, known_config
from edgeformer.exporters.mlx.exporter import stock_type
from edgeformer.exporters.onnx.targets.web import MODEL_TYPES
from edgeformer.spec.task import Task

ROOT = Path(__file__).parent.parent
DOCS, README = ROOT / "docs" / "formats.md", ROOT / "README.md"
FORMATS = {"hf": "transformers", "mlx": "mlx-lm", "gguf": "llama.cpp", "web": "transformers.js"}
BEGIN, END = "<!-- formats: made by tests/formats_page.py -->", "<!-- end of formats -->"
INTRODUCTION = """# Families and formats

Made by `bash tests/peers && EDGEFORMER_TABLES=$PWD/tables bash tests/run && .venv/bin/python tests/formats_page.py
tables`. A cell has the native type that is written, and the largest |difference| of logits that the format's own
runtime computed in float32: transformers from its original, in one pass over at most 150 positions; mlx-lm and
llama.cpp from transformers (of families that it has no class for, from our numpy back end), in a prompt and cached
steps over 160. transformers.js is compared by greedy tokens. ggml looks GELU up in a table of fp16 values, so
llama.cpp's differences are larger there: of the exact GELU it computes the tanh approximation, and the export says so.
A family may fit in part: `edgeformer targets MODEL` answers for one model. An export that would compute something else
is refused; the reason names the nearest type, the fields that differ, and in brackets what that type computes.
"""


def written(model: LoadedModel, formats: Sequence[str] = tuple(FORMATS)) -> dict[str, tuple[str, str]]:
    """Format -> the native type that would be written, or "" and the reason against it."""

    def mlx() -> str:
        found, reason = stock_type(model.spec, model.model_type)
        if found is None:
            raise EdgeformerError(reason)
        return found.name

    ways: dict[str, Callable[[], str]] = {
        "hf": lambda: family_config(model.spec, model.model_type).config["model_type"],
        "mlx": mlx,
        "gguf": lambda: architecture(model.spec, model.model_type).name,
        "web": lambda: known_config(model.spec, model.config, MODEL_TYPES)["model_type"],
    }
    out = {}
    for name in formats:
        try:
            out[name] = ways[name](), ""
        except EdgeformerError as e:
            out[name] = "", str(e).split("the nearest is ")[-1]
    return out


def example(family: str) -> LoadedModel:
    """A model of a family, without weights."""
    return model_of(family, examples(family)[0])


def examples(family: str) -> list[dict[str, Any]]:
    """Configs of a family."""
    from gguf_cases import FAMILIES as GGUF_FAMILIES
    from gguf_cases import FORMULAS as GGUF_FORMULAS
    from mlx_cases import FORMULAS, STOCK

    found = [STOCK[family]] if family in STOCK else []
    found += [settings(family, case) for case in CASES.get(family, {}).values()]
    if family in ENCODERS or family in ("camembert", "xlm_roberta"):
        found.append(encoder_settings(family if family in ENCODERS else "roberta", {}))
    if family in ENCODER_DECODERS:
        found.append(pair_settings(family, {"num_decoder_layers": 2} if family in ("t5", "mt5") else {}))
    found += [FORMULAS[family]] if family in FORMULAS else []
    return found + [cases[family][1] for cases in (GGUF_FAMILIES, GGUF_FORMULAS) if family in cases]


def model_of(family: str, config: dict[str, Any]) -> LoadedModel:
    """The model of a config, without weights."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": family, **config}))
        return load(folder)


def recorded(folder: Path, table: str, key: Callable[[str], bool]) -> dict[str, tuple[str, float]]:
    """Family -> the name and the size of the largest error of a table's rows, over the errors whose name `key` accepts."""
    out: dict[str, tuple[str, float]] = {}
    for file in sorted((folder / table).glob("*.json")):
        row: dict[str, Any] = json.loads(file.read_text())
        family = row["row"].partition("@")[0]
        for name, error in row["errors"].items():
            if key(name) and error >= out.get(family, ("", 0.0))[1]:
                out[family] = name, error
    return out


def _cell(
    name: str, family: str, native: tuple[str, str], measured: dict[str, tuple[str, float]], decoder: bool
) -> str:
    if family in measured:
        kind, error = measured[family]
        kind = kind if name == "gguf" else native[0] or family
        return f"{kind}: same tokens" if name == "web" else f"{kind} {error:.0e}"
    if native[0]:
        return native[0] if name in ("hf", "web") else f"{native[0]} (not run)"
    return native[1] if decoder or name != "mlx" else "decoders only"


def page(folder: Path) -> str:
    """The whole document."""
    columns = {
        "hf": recorded(folder, "hf", lambda _: True),
        "mlx": recorded(folder, "mlx", lambda name: name == "fp32"),
        "gguf": recorded(folder, "gguf", lambda _: True),
        "web": recorded(folder, "web", lambda _: True),
    }
    lines = [INTRODUCTION, f"| family | {' | '.join(FORMATS.values())} |", "|---|---|---|---|---|"]
    aliases = {"mt5", "camembert", "xlm_roberta"}
    for family in discover.names("edgeformer.models"):
        if family in aliases:
            continue
        model = example(family)
        native, decoder = written(model), model.spec.task == Task.TEXT_GENERATION
        cells = [_cell(name, family, native[name], measured, decoder) for name, measured in columns.items()]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "camembert and xlm_roberta are roberta's architecture, mt5 is t5's.",
        "",
    ]
    return "\n".join([*lines, *named()])


def named() -> list[str]:
    """How many of the named models each format holds, and the reasons against the rest."""
    found = {name: written(load(name)) for name in named_specs()}
    lines = ["## Named models", "", f"Of {len(found)} (`edgeformer named`):", ""]
    for way, label in FORMATS.items():
        against = {name: f[way][1] for name, f in found.items() if not f[way][0]}
        reasons: dict[str, list[str]] = {}
        for name, reason in against.items():
            reasons.setdefault(reason, []).append(name)
        lines.append(f"- **{label}: {len(found) - len(against)}**")
        lines += [
            f"  - {', '.join(names)}: {reason}" for reason, names in sorted(reasons.items(), key=lambda r: -len(r[1]))
        ]
    return [*lines, ""]


def matrix() -> str:
    """README's table of native types by family and format: those of the first of a family's examples that fits; `-` if none."""
    lines = [BEGIN, f"| family | {' | '.join(FORMATS.values())} |", "|---|---|---|---|---|"]
    for family in discover.names("edgeformer.models"):
        found: dict[str, str] = {}
        for config in examples(family):
            native = written(model_of(family, config), [name for name in FORMATS if not found.get(name)])
            found |= {name: kind for name, (kind, _) in native.items() if kind}
        lines.append(f"| {family} | " + " | ".join(found.get(name, "-") for name in FORMATS) + " |")
    return "\n".join([*lines, END])


def with_matrix(readme: str) -> str:
    """README's text with the table of now."""
    before, _, rest = readme.partition(BEGIN)
    return before + matrix() + rest.partition(END)[2]


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    if sys.argv[1:] == ["--check"]:
        sys.exit(
            None
            if text == with_matrix(text)
            else "README's table of formats is not today's: python tests/formats_page.py"
        )
    README.write_text(with_matrix(text), encoding="utf-8")
    if len(sys.argv) < 2:
        print("\n".join(named()))
    else:
        target = Path(sys.argv[2]) if len(sys.argv) > 2 else DOCS
        target.write_text(page(Path(sys.argv[1])), encoding="utf-8")
        print(f"{target} written")
