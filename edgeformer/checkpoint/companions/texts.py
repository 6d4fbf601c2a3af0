"""A fixed set of texts whose token ids distinguish two tokenizers."""

from __future__ import annotations

from edgeformer.checkpoint.companions.tokenizer import Tokenizer

TEXTS = (
    "Hello, world! It's 12345.678 o'clock; we'll see.",
    "  two spaces,\ttabs\t\tand\n\nnew lines \r\n   trailing   ",
    "def f(x):\n    return x**2  # ½ ≠ 1\n",
    "Größe, façade, naïve, Ærøskøbing, İstanbul ǅ",
    "Привет, как дела? Γειά σου Κόσμε",
    "你好,世界!今天天气怎么样?",
    "こんにちは世界、カタカナ、한국어 문장입니다",
    "שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก",
    "emoji: 😀 👍🏽 👩‍👩‍👧‍👦 🇫🇷 ❤️",
    "e\u0301 decomposed, \ufb01 ligature, \u00a0 no-break, \u200b zero width, \u3000 ideographic",
    "1,000,000 0x1F 3.14e-10 v1.2.3-rc4 https://example.com/a?b=c&d=%20#e",
    "x" * 40 + " " * 17 + "=" * 33,
    "",
)
"""Languages, emoji, white space, numbers, code."""


def texts_of(tokenizer: Tokenizer) -> list[str]:
    """The texts, and some with the tokenizer's own special tokens inside."""
    named = list(dict.fromkeys((*tokenizer.named.values(), *tokenizer.special())))[:8]
    return [*TEXTS, *(f"a{token}b" for token in named), *(["".join(named)] if named else [])]


def first_difference(
    one: Tokenizer, other: Tokenizer, texts: list[str], *, special: bool = True
) -> tuple[str, list[int], list[int]] | None:
    """The first text that two tokenizers encode differently, and both lists of ids; None if there is none."""
    for text in texts:
        a, b = one.encode(text, special=special), other.encode(text, special=special)
        if a != b:
            return text, a, b
    return None
