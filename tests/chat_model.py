"""A tiny chat model as people publish them: what surrounds its weights is spread over five files, and some of it stands in one
place only."""

from __future__ import annotations

import json
from pathlib import Path

from family_cases import settings
from support import hf_model

from edgeformer.checkpoint.companions.plainness import LLAMA3
from edgeformer.checkpoint.companions.texts import TEXTS

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB = 420


def tokenizer(vocab: int = 400):
    """A byte-level BPE with Llama 3's rules; `<s>` before every text; `<|im_start|>` and its like are not in it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


def chat_model(folder: Path, model_type: str = "llama", **config) -> dict[str, int]:
    """Write the model; token -> id of those that only tokenizer_config.json knows."""
    made = tokenizer()
    size = made.get_vocab_size()
    more = {token: size + i for i, token in enumerate(("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool>"))}
    ends = {"bos_token_id": 0, "eos_token_id": more["<|endoftext|>"]}
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 96,
        "head_dim": 16,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
    }
    hf_model(folder, model_type, **(settings(model_type, sizes | config) | ends))
    made.enable_truncation(16)
    made.enable_padding(length=64, pad_id=1, pad_token="</s>")
    made.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    tokens = {str(i): {"content": t, "special": t != "<tool>", **flags} for t, i in more.items()}
    tokens |= {str(i): {"content": t, "special": True, **flags} for i, t in enumerate(("<s>", "</s>"))}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "added_tokens_decoder": tokens,
                "bos_token": "<s>",
                "eos_token": "<|im_end|>",
            }
        )
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(
        json.dumps(
            {
                "bos_token_id": 0,
                "eos_token_id": [more["<|im_end|>"], more["<|endoftext|>"], 1],
                "do_sample": True,
                "temperature": 0.6,
                "top_k": 20,
                "top_p": 0.95,
            }
        )
    )
    return more
