"""The boundary to third-party code: what a runtime's library or a plug-in raises becomes one error that names the runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable

from edgeformer.errors import RuntimeFault, is_fault
from edgeformer.files.quoting import plain

Answer = Callable[[str], object]
"""A method's return value in place of a fault, given the fault's message."""


def guard(cls: type, methods: dict[str, Answer | None]) -> None:
    """Wrap those of `methods` that a class defines itself.

    methods: name -> None to turn a fault into `RuntimeFault`, or the `Answer` to return instead.
    """
    for name, answer in methods.items():
        function = vars(cls).get(name)
        if callable(function) and not isinstance(function, (staticmethod, classmethod)):
            setattr(cls, name, _guarded(function, answer))


def fault(owner: object, error: BaseException) -> str:
    """The message for a fault: the runtime's name and the exception."""
    name = type(owner).__module__.rsplit(".", 1)[-1]
    said = plain(f"{type(error).__name__}: {error}", limit=1000)
    return f"the runtime {name} failed: {said}"


def _guarded(function: Callable[..., object], answer: Answer | None) -> Callable[..., object]:
    @functools.wraps(function)
    def call(self: object, *arguments: object, **options: object) -> object:
        try:
            return function(self, *arguments, **options)
        except BaseException as e:
            if not is_fault(e):
                raise
            if answer is not None:
                return answer(fault(self, e))
            raise RuntimeFault(fault(self, e)) from e

    return call
