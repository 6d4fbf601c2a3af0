"""CamemBERT (Martin et al. 2019, arXiv 1911.03894): RoBERTa, trained on French."""

from typing import Any

from edgeformer.models._family import Family
from edgeformer.models._names import unused_bias
from edgeformer.models.roberta import (
    HEADS,
    IGNORED,
    NAMES,
    PREFIXES,
    RENAMED,
    TIED,
    UNPREFIXED,
    names,
    roberta_config,
    spec,
)
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "RENAMED", "TIED", "config", "names", "spec"]


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    return roberta_config(spec, "camembert", "Camembert")


FAMILY = Family(
    spec,
    names,
    config=config,
    prefixes=PREFIXES,
    unprefixed=UNPREFIXED,
    heads=HEADS,
    ignored=IGNORED,
    tied=TIED,
    renamed=RENAMED,
    double_of="roberta",
    copies=unused_bias("lm_head.bias"),
)
