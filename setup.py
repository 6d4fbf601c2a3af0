"""`EDGEFORMER_WHEEL=native pip wheel . --no-deps` makes a wheel for this platform with the native library inside; without the
variable the wheel is pure, and the library is built where it is first used. Everything else is in pyproject.toml.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = os.environ.get("EDGEFORMER_WHEEL") == "native"


class BuildWithLibrary(build_py):
    """Copies the package, then builds the library into it."""

    def run(self) -> None:
        super().run()
        if not NATIVE:
            return
        package = Path(self.build_lib) / "edgeformer" / "backends" / "native"
        (package / "lib").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(["cmake", "-S", package / "src", "-B", scratch, "-DCMAKE_BUILD_TYPE=Release"], check=True)
            subprocess.run(["cmake", "--build", scratch, "--config", "Release", "--parallel"], check=True)
            made = next(p for p in Path(scratch).rglob("*edgeformer_native.*") if p.suffix in (".so", ".dylib", ".dll"))
            self.copy_file(str(made), str(package / "lib" / "libedgeformer_native.so"))


class PlatformWheel(bdist_wheel):
    """Tagged for the platform, and for every Python: the library has a C ABI and no extension module."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if NATIVE else (python, abi, platform)


class WithLibrary(Distribution):
    """A distribution that isn't pure if it holds the library."""

    def has_ext_modules(self) -> bool:
        return NATIVE


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel}, distclass=WithLibrary)
