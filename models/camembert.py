"""CamemBERT (Martin et al. 2019, arXiv 1911.03894): RoBERTa, trained on French."""

from dataclasses import replace
from typing import Any

from edgeformer.models import roberta
from edgeformer.spec import Model


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    return roberta.roberta_config(spec, "camembert", "Camembert")


FAMILY = replace(roberta.FAMILY, config=config, common=False, double_of="roberta")
