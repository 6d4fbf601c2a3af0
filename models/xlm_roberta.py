"""XLM-RoBERTa (Conneau et al. 2019, arXiv 1911.02116): RoBERTa, trained on a hundred languages. Its model_type is xlm-roberta."""

from edgeformer.models._family import Family
from edgeformer.models.roberta import IGNORED, NAMES, PREFIXES, RENAMED, TIED, names, spec

__all__ = ["IGNORED", "NAMES", "PREFIXES", "RENAMED", "TIED", "names", "spec"]

FAMILY = Family(spec, names, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, renamed=RENAMED)
