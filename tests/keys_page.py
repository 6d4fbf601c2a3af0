"""docs/config-keys.md, made of tests/public_configs.json: the public configs consulted, and what each key is to edgeformer.

python tests/keys_page.py docs/config-keys.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from edgeformer.checkpoint.loading import family
from edgeformer.errors import EdgeformerError
from edgeformer.models._config import HARMLESS, HfConfig

CONFIGS = Path(__file__).parent / "public_configs.json"
WHY = (
    (r"drop|jitter|loss|aux|initializer|layerdrop|pdrop|distil|student|replacing|stochastic", "of training"),
    (r"classif|qa_|pooler|num_labels|head_bias|head_size", "of a head, or of a size that follows from others"),
    (r"softmax_in_fp32|fusion|attn_impl|runner|flash|compile|kernel|init_device|verbose|implementation|batch_size|query_key"
     r"|fp32_residual|pre_allocate|pad_key|deterministic", "how it is computed, not what"),
    (r"", "follows from other keys, or is read by no code of the family"),
)  # fmt: skip
"""Why a family ignores a key, by what the key is called."""


def public_configs() -> dict[str, list[dict]]:
    """Family -> [{name, source, config}]."""
    return json.loads(CONFIGS.read_text(encoding="utf-8"))


def read(model_type: str, entry: dict) -> tuple[HfConfig, str | None]:
    """The reader after it has read a config, and why it refused it."""
    reader = HfConfig({"model_type": model_type, **entry["config"]}, entry["name"])
    try:
        family(model_type).spec(reader)
        reader.done()
    except (EdgeformerError, TypeError, ValueError, KeyError, AttributeError) as e:
        return reader, str(e).split(". They may")[0].removeprefix(f"{entry['name']}")
    return reader, None


def section(model_type: str, entries: list[dict]) -> list[str]:
    """A family's part of the page."""
    everywhere = {key: why for why, keys in HARMLESS.items() for key in keys}
    seen: dict[str, str] = {}
    refused = []
    for entry in entries:
        reader, reason = read(model_type, entry)
        if reason is not None:
            refused.append(f"{entry['name']}: {reason.strip(': ')[:160]}")
            continue
        for key in entry["config"]:
            if key in reader.ignored:
                seen[key] = next(why for pattern, why in WHY if re.search(pattern, key))
            elif key in everywhere and seen.get(key) != "read":
                seen[key] = everywhere[key]
            else:
                seen[key] = "read"
    listed = "; ".join(f"{e['name']} ({e['source']})" for e in entries)
    lines = [f"## {model_type}", "", f"Consulted ({len(entries)}): {listed}.", ""]
    lines.append(
        "* read, or accepted at one value: " + ", ".join(sorted(k for k, why in seen.items() if why == "read"))
    )
    for why in sorted(set(seen.values()) - {"read"}):
        lines.append(f"* harmless, {why}: " + ", ".join(sorted(k for k, w in seen.items() if w == why)))
    lines += [f"* refused: {text}" for text in refused]
    return [*lines, ""]


def page() -> str:
    """The whole page."""
    lines = [
        "# What the keys of public configs are to edgeformer", "",
        "Made by `python tests/keys_page.py docs/config-keys.md` from `tests/public_configs.json`; a test reads every config",
        "and compares this page. \"Recalled\" configs were written down from memory of a well-known checkpoint, the others",
        "looked up in the public repository that is named. A key that a family neither reads nor knows as harmless is an",
        "error.", "",
    ]  # fmt: skip
    for model_type, entries in public_configs().items():
        lines += section(model_type, entries)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
