"""Lookup of runtimes by name: edgeformer's own files and plug-ins; a broken plug-in doesn't affect the others."""

from __future__ import annotations

from types import ModuleType

from edgeformer import discover
from edgeformer.errors import PluginError, RuntimeUnavailable, is_fault
from edgeformer.inference.runtime import FORMATS, PACKAGE, Runtime
from edgeformer.spec import Model


def names() -> list[str]:
    """All runtimes, installed or not."""
    return discover.names(PACKAGE)


def compared(spec: Model) -> list[str]:
    """What a comparison of this model includes if nothing is chosen: every runtime, and some with a variant."""
    return [f"{name}:{v}" if v else name for name in names() for v in ("", *get(name)[0].compared(spec))]


def get(name: str) -> tuple[Runtime, str]:
    """The runtime called `name` or `name:variant`, and the variant.

    Raises:
        RuntimeUnavailable: there is no such runtime or variant.
    """
    base, _, variant = name.partition(":")
    try:
        module = None if base.startswith("_") else discover.find(PACKAGE, base)
    except PluginError as e:
        module = str(e)
    if module is None:
        raise RuntimeUnavailable(f"there is no runtime {base!r}; runtimes are {', '.join(names())}")
    if isinstance(module, str):
        return Broken(module), variant
    runtime = _made(module, base)
    if variant and not runtime.has(variant):
        known = ", ".join(f"{base}:{v}" for v in runtime.variants) or "none"
        raise RuntimeUnavailable(f"the runtime {base} has no variant {variant!r}; its variants are: {known}")
    return runtime, variant


class Broken(Runtime):
    """Stands in for a plug-in that can't be used: it opens nothing, and `unavailable` returns the reason."""

    opens, ranked = "", False

    def __init__(self, reason: str):
        self.reason = reason

    def unavailable(self):
        return self.reason

    def has(self, variant):
        return True

    def refuses(self, spec, options):
        return self.reason

    def open(self, source, options):
        raise RuntimeUnavailable(self.reason)


def _made(module: ModuleType, name: str) -> Runtime:
    """A module's runtime, or `Broken` with the reason why there is none."""
    plugin = discover.is_plugin(PACKAGE, name)
    try:
        made = discover.declared(module, "Runtime", type)()
        wrong = (
            None
            if isinstance(made, Runtime)
            else "its Runtime is not a subclass of edgeformer.inference.runtime.Runtime"
        )
        if wrong is None and not (
            isinstance(getattr(made, "opens", None), str) and all(isinstance(v, str) for v in made.variants)
        ):
            wrong = "`opens` and `variants` must be strings"
    except PluginError as e:
        made, wrong = None, str(e)
    except BaseException as e:
        if not plugin or not is_fault(e):
            raise
        made, wrong = None, f"{type(e).__name__}: {e}"
    return (
        made
        if made is not None and wrong is None
        else Broken(f"the {'plug-in' if plugin else 'runtime'} {name!r} is broken: {wrong}; fix it or uninstall it")
    )


def first_that_opens(kind: str) -> str:
    """The first installed runtime, by name, that is ranked and opens this format itself (a server has its own model); runtimes
    made for the format come first.

    Raises:
        RuntimeUnavailable: there is none; the message has the install lines.
    """
    found = [(name, get(name)[0]) for name in names()]
    fitting = [
        (name, runtime) for name, runtime in found if runtime.takes(kind) and runtime.ranked and not runtime.served
    ]
    fitting.sort(key=lambda entry: entry[1].opens != kind)  # runtimes made for the format first
    for name, runtime in fitting:
        if runtime.unavailable() is None:
            return name
    reasons = "; ".join(f"{name}: {runtime.unavailable()}" for name, runtime in fitting)
    raise RuntimeUnavailable(f"no runtime for {FORMATS.get(kind, kind)} is installed. {reasons}")


def require(name: str) -> tuple[Runtime, str]:
    """Like `get`, but the runtime must also be installed.

    Raises:
        RuntimeUnavailable: it isn't; the message has the install line.
    """
    runtime, variant = get(name)
    if (reason := runtime.unavailable()) is not None:
        raise RuntimeUnavailable(f"the runtime {name} can't be used: {reason}")
    return runtime, variant
