"""The house rules, as tests: sizes, names, packaging, and what an import costs."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import tomllib

import pytest
from support import ROOT

import edgeformer
from edgeformer import discover
from edgeformer.errors import PluginError
from edgeformer.inference import lookup, runtime
from edgeformer.models._family import Family

CODE = ("*.py", "*.cc", "*.h", "*.cpp", "*.metal")
FOLDERS = ("edgeformer", "export", "runtimes", "models", "tests", "benchmarks")
FRAMEWORKS = ("torch", "mlx", "onnx", "onnx_ir", "onnxruntime", "transformers", "numpy", "rich", "huggingface_hub")


def sources():
    for folder in FOLDERS:
        for pattern in CODE:
            for file in (ROOT / folder).rglob(pattern):
                parts = file.relative_to(ROOT).parts[1:-1]
                if not {"exporters", "runtimes", "models", "node_modules", "peer_files"}.intersection(parts):
                    yield file


def test_no_file_over_400_lines():
    long = {str(f.relative_to(ROOT)): n for f in sources() if (n := len(f.read_text().splitlines())) > 400}
    assert not long


def test_every_package_is_in_the_wheel():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for folder in ("edgeformer", "export", "runtimes", "models"):
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            if parts[0] == "edgeformer" and len(parts) > 1 and parts[1] in ("exporters", "runtimes", "models"):
                continue  # the links
            inside = ("exporters", *parts[1:]) if parts[0] == "export" else parts
            found.add(".".join(parts if parts[0] == "edgeformer" else ("edgeformer", *inside)))
    assert listed == found


def contract() -> list[str]:
    (rules,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert rules["exhaustive"] is True and rules["exhaustive_ignores"] == ["__main__"]
    return rules["layers"]


def test_the_contract_places_every_module_and_is_the_one_in_the_docs():
    rungs = contract()
    placed = {name for rung in rungs for name in re.split(r" [|:] ", rung)}
    there = {m.name for m in pkgutil.iter_modules(edgeformer.__path__)} - {"__main__"}
    assert placed == there and len(rungs) <= 14 and len(there) + 2 <= 22  # with __init__ and __main__
    shown = (ROOT / "docs" / "architecture.md").read_text()
    assert "\n".join(["```", *rungs, "```"]) in shown
    for name in placed:
        assert f"`{name}/`" in shown or f"`{name}.py`" in shown, name


def test_the_readme_names_all_families():
    readme = (ROOT / "README.md").read_text()
    (listed,) = re.findall(r"^Families: (.*?)\.$", readme, re.M | re.S)
    families = discover.names("edgeformer.models")
    assert re.split(r",\s+", listed) == families and f"of {len(families)} families" in readme


def test_a_module_outside_the_contract_is_found(tmp_path):
    """Oracle: import-linter itself, on a copy of the package's skeleton with one module more."""
    importlinter = pytest.importorskip("importlinter.cli")
    assert importlinter is not None
    for name in {m.name for m in pkgutil.iter_modules(edgeformer.__path__)} | {"stray"}:
        (tmp_path / "edgeformer").mkdir(exist_ok=True)
        (tmp_path / "edgeformer" / f"{name}.py").write_text("")
    (tmp_path / "edgeformer" / "__init__.py").write_text("")
    section = (ROOT / "pyproject.toml").read_text().split("[tool.importlinter]")[1]
    (tmp_path / "pyproject.toml").write_text("[tool.importlinter]" + section)
    program = "import sys; from importlinter.cli import lint_imports_command; sys.argv = ['lint-imports']; lint_imports_command()"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode != 0 and "edgeformer.stray" in done.stdout + done.stderr


def test_the_median_file_is_short():
    lines = sorted(len(f.read_text().splitlines()) for f in sources() if f.suffix == ".py" and "tests" not in f.parts)
    assert lines[len(lines) // 2] <= 120


def loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in out.stdout.splitlines()[-1].split()}


def test_import_loads_no_framework():
    assert not loaded_by("import edgeformer").intersection(FRAMEWORKS)


def test_help_loads_no_framework():
    code = "from click.testing import CliRunner; from edgeformer.cli import cli; CliRunner().invoke(cli, ['--help'])"
    assert not loaded_by(code).intersection(FRAMEWORKS)


def test_exporting_does_not_load_torch():
    assert "torch" not in loaded_by(
        "import edgeformer.exporters.onnx.exporter, edgeformer.verification.parity, edgeformer.measure.harness"
    )


def test_public_names():
    assert sorted(edgeformer.__all__) == edgeformer.__all__
    for name in edgeformer.__all__:
        assert getattr(edgeformer, name) is not None
    with pytest.raises(AttributeError):
        _ = edgeformer.no_such_name


def test_functions_are_not_packages(tmp_path):
    """`edgeformer.export` was a function or a package, whichever was imported last."""
    import edgeformer.exporters.onnx.exporter
    import edgeformer.quantization.run

    for name in edgeformer.__all__:
        assert importlib.util.find_spec(f"edgeformer.{name}") is None, name
    made = edgeformer.export(ROOT / "models" / "stdlib-5m", tmp_path / "m")
    assert (made.folder / "model.onnx").exists()


@pytest.mark.parametrize("name", lookup.names())
def test_every_runtime_is_complete(name):
    found, _ = lookup.get(name)
    assert found.opens in runtime.FORMATS
    assert found.unavailable() is None or re.search(r"(pip|npm) install", found.unavailable())


@pytest.mark.parametrize("name", discover.names("edgeformer.models"))
def test_every_family_is_complete(name):
    module = discover.find("edgeformer.models", name)
    assert isinstance(module.FAMILY, Family) and module.__doc__ and module.FAMILY.names


def test_a_part_from_outside_the_package(monkeypatch, tmp_path):
    """Families, layers and runtimes also come through entry points."""
    (tmp_path / "my_runtime.py").write_text("from edgeformer.runtimes.null import Runtime\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(discover, "_entry_points", lambda group: {"mine": "my_runtime"} if "runtimes" in group else {})
    assert "mine" in lookup.names()
    assert lookup.get("mine")[0].ranked is False


def test_a_broken_import_inside_a_part_is_not_swallowed(monkeypatch, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(discover, "_entry_points", lambda group: {"broken": "broken"})
    with pytest.raises(PluginError, match=r"'broken'.*no_such_package_at_all"):
        discover.find("edgeformer.runtimes", "broken")
