"""XLM-RoBERTa (Conneau et al. 2019, arXiv 1911.02116): RoBERTa, trained on a hundred languages. Its model_type is xlm-roberta."""

from dataclasses import replace
from typing import Any

from edgeformer.models import roberta
from edgeformer.spec import Model


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    return roberta.roberta_config(spec, "xlm-roberta", "XLMRoberta")


FAMILY = replace(roberta.FAMILY, config=config, common=False, double_of="roberta")
