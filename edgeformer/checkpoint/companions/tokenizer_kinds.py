"""The tokenizer protocol, fast tokenizers (the package `tokenizers`) and slow ones (transformers)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from edgeformer.errors import InputError, is_fault
from edgeformer.files.quoting import plain

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Inner

Answer = TypeVar("Answer")


class Tokenizer(Protocol):
    """Text to token ids and back."""

    named: dict[str, str]
    """The special tokens by transformers' names (`bos_token`, ...), as chat templates see them."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; `special`: with the special tokens that surround every text."""
        ...

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """Text; `special`: with special tokens."""
        ...

    def id_of(self, token: str) -> int | None:
        """The id of a token, None if there is no such token."""
        ...

    def special(self) -> list[str]:
        """The special tokens, named or not, by id."""
        ...

    def to_json(self) -> str | None:
        """The content of a tokenizer.json that alone produces the same ids; None if no tokenizer.json can express it."""
        ...


@dataclass
class FastTokenizer:
    """A tokenizer of the package `tokenizers`."""

    inner: Inner
    named: dict[str, str]

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return asked(lambda: self.inner.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        return asked(lambda: self.inner.decode(ids, skip_special_tokens=not special))

    def id_of(self, token: str) -> int | None:
        return self.inner.token_to_id(token)

    def special(self) -> list[str]:
        return [token.content for _, token in sorted(self.inner.get_added_tokens_decoder().items()) if token.special]

    def to_json(self) -> str | None:
        return self.inner.to_str(pretty=True)


def asked(call: Callable[[], Answer]) -> Answer:
    """Call the package `tokenizers`, which raises bare Exceptions, and Rust panics that are not Exceptions.

    Raises:
        InputError: the call failed, as it does on half of a surrogate pair.
    """
    try:
        return call()
    except BaseException as e:
        if not is_fault(e):
            raise
        raise InputError(f"the tokenizer failed: {plain(str(e), limit=500)}") from e


@dataclass
class SlowTokenizer:
    """A tokenizer that transformers implements only in Python (Marian's)."""

    inner: Any  # of transformers, whose methods take and return one id or many, and are typed for both
    named: dict[str, str]

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return self.inner(text, add_special_tokens=special)["input_ids"]

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        return self.inner.decode(ids, skip_special_tokens=not special)

    def id_of(self, token: str) -> int | None:
        found = self.inner.convert_tokens_to_ids(token)
        return found if self.inner.convert_ids_to_tokens(found) == token else None

    def special(self) -> list[str]:
        return list(self.inner.all_special_tokens)

    def to_json(self) -> str | None:
        return None
