"""Checks a kernel's text with clang's parser, address spaces and all, without compiling it."""

from __future__ import annotations

import re
from pathlib import Path

from metal_emulator.bridge import Launch

PRELUDE = Path(__file__).with_name("lint.h")


def problems(launch: Launch) -> list[str]:
    """What clang has to say about the function that MLX generated, instantiated with its template arguments."""
    from clang import cindex

    text = re.sub(r'template\s*\[\[host_name\("[^"]*"\)\]\][^;]*;', "", launch.source)
    # storage in an address space is no automatic variable to clang; a static one is
    storage = r"(?m)^(\s*)threadgroup\s+([\w:]+)\s+(\w+)\s*((?:\[[^\]]+\])*)\s*;"
    text = re.sub(storage, r"\1static threadgroup \2 \3\4;", text)
    text = re.sub(r"\[\[.*?\]\]", "", text)
    function = f"{launch.name}<{launch.template}>"
    text = f'#include "{PRELUDE}"\n{text}\ntemplate decltype({function}) {function};\n'
    arguments = ["-x", "c++", "-std=c++17", "-nostdinc", "-target", "x86_64-linux-gnu", "-Wall", "-Wno-unused"]
    unit = cindex.Index.create().parse("kernel.cpp", arguments, [("kernel.cpp", text)])
    return [f"{d.location.line}: {d.spelling}" for d in unit.diagnostics if d.severity >= cindex.Diagnostic.Warning]
