"""Where other people's code begins: what a runtime's library, or a plug-in, raises becomes one error that names the runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from edgeformer.errors import RuntimeFault, is_fault
from edgeformer.files.quoting import plain

Answer = Callable[[str], Any]
"""What a method answers instead, given what went wrong."""


def guard(cls: type, methods: dict[str, Answer | None]) -> None:
    """Wrap those of these methods that a class defines itself.

    methods: name -> None where a fault is an error of the runtime (`RuntimeFault`), or what is answered instead.
    """
    for name, answer in methods.items():
        function = vars(cls).get(name)
        if callable(function) and not isinstance(function, (staticmethod, classmethod)):
            setattr(cls, name, _guarded(function, answer))


def fault(owner: object, error: BaseException) -> str:
    """What went wrong, for people."""
    name = type(owner).__module__.rsplit(".", 1)[-1]
    said = plain(f"{type(error).__name__}: {error}", limit=1000)
    return f"the runtime {name} failed: {said}"


def _guarded(function: Callable[..., Any], answer: Answer | None) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(self: object, *arguments: Any, **options: Any) -> Any:
        try:
            return function(self, *arguments, **options)
        except BaseException as e:
            if not is_fault(e):
                raise
            if answer is not None:
                return answer(fault(self, e))
            raise RuntimeFault(fault(self, e)) from e

    return call
