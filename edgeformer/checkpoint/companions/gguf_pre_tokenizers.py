"""How byte-level BPE tokenizers split text before they merge, by llama.cpp's names (`tokenizer.ggml.pre`).

The patterns are those of the models' own tokenizer.json; each step splits what the steps before it left. llama.cpp spells some
otherwise, and knows the case of ASCII letters only (tekken, gpt-4o): it may split other text differently there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeformer.checkpoint.companions.plainness import GPT2, LLAMA3, QWEN2

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

DIGIT, DIGITS, THREE_DIGITS = r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LEAD, _UPPER, _LOWER = (
    r"[^\r\n\p{L}\p{N}]?",
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
)
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CJK, _CJK_KANA = "[一-龥ࠀ-一가-퟿]+", "[一-龥぀-ゟ゠-ヿ]+"


def _cased(ending: str, digits: str) -> str:
    """Words split where lower case turns to upper case."""
    return rf"{_LEAD}{_UPPER}*{_LOWER}+{ending}|{_LEAD}{_UPPER}+{_LOWER}*{ending}|{digits}{_REST}"


GPT4O = _cased(_CONTRACTION + "?", THREE_DIGITS)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_DEEPSEEK_LETTERS = (
    r"A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ"
    r"-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰"
    r"-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"


@dataclass(frozen=True)
class Splitting:
    """One way of splitting.

    steps: patterns of Oniguruma, each match a piece. gpt2: GPT-2's own pattern comes last. whole_words: a piece that is a token
    is taken whole, whatever the merges are (`ignore_merges`). bos: texts begin with the beginning-of-text token by default.
    """

    steps: tuple[str, ...] = ()
    gpt2: bool = False
    whole_words: bool = False
    bos: bool = False

    def made(self) -> PreTokenizer:
        """The pre-tokenizer of the package `tokenizers`."""
        from tokenizers import Regex, pre_tokenizers

        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2)
        steps = [
            pre_tokenizers.Digits(individual_digits=True)
            if step == DIGIT
            else pre_tokenizers.Split(Regex(step), "isolated")
            for step in self.steps
        ]
        return pre_tokenizers.Sequence([*steps, level]) if steps else level


SPLITTINGS: dict[str, tuple[tuple[str, ...], Splitting]] = {
    "gpt-2": (
        ("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "jina-es", "jina-de", "jina-v2-es",
         "jina-v2-de", "jina-v1-en", "jina-v2-code", "roberta-bpe", "gigachat", "a.x-4.0", "mellum", "modern-bert"),
        Splitting(gpt2=True),
    ),
    "llama-bpe": (
        ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        Splitting((LLAMA3,), whole_words=True, bos=True),
    ),
    "qwen2": (
        ("deepseek-r1-qwen", "stablelm2", "megrez", "kormo", "f2llmv2", "hunyuan", "solar-open", "grok-2"),
        Splitting((QWEN2,)),
    ),
    "smollm": (
        ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        Splitting((DIGIT,), gpt2=True),
    ),
    "dbrx": (("smaug-bpe", "chatglm-bpe"), Splitting((LLAMA3,))),
    "glm4": (("glm5",), Splitting((LLAMA3,), whole_words=True)),
    "qwen35": ((), Splitting((
        QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),
    ))),
    "tekken": ((), Splitting((_cased("", DIGIT),), whole_words=True, bos=True)),
    "gpt-4o": (("llama4", "kanana2", "talkie", "minimax-m2"), Splitting((GPT4O,))),
    "deepseek-v3": (("hunyuan-dense", "joyai-llm", "hy_v4"), Splitting((THREE_DIGITS, _CJK_KANA, _DEEPSEEK3))),
    "deepseek-coder": ((), Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, DIGIT))),
    "deepseek-llm": ((), Splitting((
        r"[\r\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK, DIGITS,
    ))),
    "falcon": ((), Splitting((_PUNCTUATION, GPT2, "[0-9][0-9][0-9]"))),
    "bloom": (("poro-chat", "gpt3-finnish"), Splitting((_BLOOM,))),
    "viking": ((), Splitting((_BLOOM, DIGIT))),
    "bailingmoe": (("bailingmoe2", "llada-moe"), Splitting((
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ))),
    "seed-coder": ((), Splitting((
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    ))),
    "minicpm5": ((), Splitting((THREE_DIGITS, QWEN2.replace(r"\p{N}|", r"\p{N}+|", 1)), whole_words=True)),
    "default": ((), Splitting((_PUNCTUATION.replace("`", ""), GPT2, DIGITS, "[0-9][0-9][0-9]"))),
}  # fmt: skip
"""llama.cpp's name -> other names for the same, and how it splits. `default` is what llama.cpp does with files without a name."""
_NAMES = {alias: name for name, (aliases, _) in SPLITTINGS.items() for alias in (name, *aliases)}


def splitting(name: str) -> Splitting | None:
    """The way of splitting that a file names; None if it isn't known."""
    known = _NAMES.get(name)
    return None if known is None else SPLITTINGS[known][1]


def name_of(pre_tokenizer: Any, whole_words: bool) -> str | None:
    """llama.cpp's name for a tokenizer.json's pre-tokenizer; None if it has none.

    pre_tokenizer: its JSON, of any structure. whole_words: the model's `ignore_merges`.
    """
    found = _read(pre_tokenizer)
    if found is None:
        return None
    for name, (_, known) in SPLITTINGS.items():
        same = _alike(known.steps, found[0]) and known.gpt2 == found[1]
        if same and known.whole_words == whole_words and name != "default":
            return name
    return None


def _alike(known: tuple[str, ...], found: tuple[str, ...]) -> bool:
    """Whether the steps are the same; DeepSeek's digits are single ones, which llama.cpp takes in runs."""
    return known == found or tuple(DIGIT if s == DIGITS else s for s in known) == found


def _read(rules: Any) -> tuple[tuple[str, ...], bool] | None:
    """The steps of a pre-tokenizer's JSON, and whether GPT-2's pattern comes last; None for any other kind."""
    steps = rules.get("pretokenizers") if isinstance(rules, dict) and rules.get("type") == "Sequence" else [rules]
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        return None
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    patterns = [_pattern(step) for step in steps[:-1]]
    if None in patterns:
        return None
    known, gpt2 = tuple(p for p in patterns if p is not None), bool(last.get("use_regex", True))
    return (known[:-1], True) if not gpt2 and known[-1:] == (GPT2,) else (known, gpt2)


def _pattern(step: dict[str, Any]) -> str | None:
    """The pattern whose matches a step turns into pieces of their own."""
    match step:
        case {"type": "Digits", "individual_digits": True}:
            return DIGIT
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"} if not step.get("invert"):
            return pattern
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Removed", "invert": True}:
            return pattern if pattern.endswith(r"|\s+") else None  # nothing is lost if the pattern matches all text
        case _:
            return None
