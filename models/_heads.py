"""Heads of encoders: which one a checkpoint has, and how families store it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgeformer.errors import ConfigError
from edgeformer.files.quoting import shown
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.head import Head
from edgeformer.layers.head_transform import HeadTransform
from edgeformer.layers.pooling import Pooling
from edgeformer.layers.sequence_classifier import SequenceClassifier
from edgeformer.layers.span_head import SpanHead
from edgeformer.layers.token_classifier import TokenClassifier
from edgeformer.models._config import HfConfig

CLASSES: dict[type[Head], str] = {
    SequenceClassifier: "ForSequenceClassification",
    TokenClassifier: "ForTokenClassification",
    SpanHead: "ForQuestionAnswering",
}
"""Heads, and the ends of transformers' class names for them."""
_BODIES = ("", "ForMaskedLM", "ForPreTraining")


def class_suffix(config: HfConfig) -> str:
    """The task in the name of the class that the checkpoint was saved from: "ForMaskedLM", or "" for a bare model.

    Raises:
        ConfigError: `architectures` is not a list of names.
    """
    named = config.data.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"{config.where}: architectures must be a list of class names, got {shown(named)}")
    found = re.search(r"For[A-Z]\w*$", named[0]) if named else None
    return found[0] if found else ""


def read_head(
    config: HfConfig,
    heads: Sequence[str],
    *,
    pooled: HeadTransform | None,
    per_token: HeadTransform | None = None,
    pooling: str = "cls",
    dropout: float = 0.0,
    drops_input: bool = False,
    span_dropout: float = 0.0,
) -> Head | None:
    """The head that config.json's `architectures` names; None for a bare model and a masked-token head.

    Args:
        config: the config.
        heads: regular expressions of the stored names of the family's heads.
        pooled: what the family puts before a sequence classifier's output map.
        per_token: the same for token classifiers and question answering.
        pooling: which vector a sequence classifier reads.
        dropout: its probability while training.
        span_dropout: the dropout of a question-answering head.
        drops_input: a sequence classifier has the dropout before the transform, too.

    Raises:
        ConfigError: a head that edgeformer doesn't build, or an invalid number of labels.
    """
    suffix = "" if config.without_head else class_suffix(config)
    if suffix in _BODIES:
        return None
    if config.stored is not None and not any(re.search(pattern, name) for name in config.stored for pattern in heads):
        if suffix in CLASSES.values():
            config.notes.append(f"architectures names a class {suffix}, but no head is stored: the body alone is built")
        return None
    if suffix == CLASSES[SequenceClassifier]:
        return SequenceClassifier(
            labels=label_count(config),
            pool=Pooling(mode=pooling, normalize=False),
            transform=pooled,
            input_dropout=dropout if drops_input else 0.0,
            dropout=dropout,
        )
    if suffix == CLASSES[TokenClassifier]:
        return TokenClassifier(labels=label_count(config), transform=per_token, dropout=dropout)
    if suffix == CLASSES[SpanHead]:
        if (count := label_count(config)) != 2:
            raise ConfigError(
                f"{config.where}: a question-answering head has 2 outputs (start and end), not {count} labels"
            )
        return SpanHead(transform=per_token, dropout=span_dropout)
    raise ConfigError(
        f"{config.where}: architectures names a class {suffix}, whose head edgeformer doesn't build; it builds"
        f" {', '.join(CLASSES.values())} and ForMaskedLM. --without-head takes the body alone"
    )


def label_count(config: HfConfig) -> int:
    """The number of labels: of `id2label` or of `num_labels`; 2 by default, as in transformers.

    Where they differ, `id2label` must be the default names, which old checkpoints carry beside the true number.

    Raises:
        ConfigError: `id2label` doesn't name the labels 0 to n - 1, or the two disagree, or `num_labels` is no positive integer.
    """
    named, said = config.data.get("id2label"), config.data.get("num_labels", config.data.get("_num_labels"))
    count = 2 if said is None else config.size("num_labels", said)
    if named is None:
        return count
    if not isinstance(named, dict) or {str(key) for key in named} != {str(i) for i in range(len(named))} or not named:
        raise ConfigError(f"{config.where}: id2label must name the labels 0 to n - 1, got {shown(named)}")
    if said is None or count == len(named):
        return len(named)
    if any(name != f"LABEL_{i}" for i, name in named.items()):
        raise ConfigError(f"{config.where}: num_labels is {count}, but id2label names {len(named)} labels")
    return count


def class_of(spec: Encoder, prefix: str) -> str:
    """transformers' class for an encoder, whose classes begin with `prefix`."""
    if spec.classifier is not None:
        return prefix + CLASSES[type(spec.classifier)]
    return prefix + ("Model" if spec.mlm is None else "ForMaskedLM")


def head_config(spec: Encoder) -> dict[str, Any]:
    """The keys on a head that all families share: labels without names, and the dropout."""
    head = spec.classifier
    if isinstance(head, SequenceClassifier | TokenClassifier):
        return {**numbered_labels(head.labels), "classifier_dropout": head.dropout}
    return {}


def numbered_labels(count: int) -> dict[str, Any]:
    """Labels as transformers names them by default."""
    names = [f"LABEL_{i}" for i in range(count)]
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
