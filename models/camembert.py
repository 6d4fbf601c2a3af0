"""CamemBERT (Martin et al. 2019, arXiv 1911.03894): RoBERTa, trained on French."""

from edgeformer.models._family import Family
from edgeformer.models.roberta import IGNORED, NAMES, PREFIXES, RENAMED, TIED, names, spec

__all__ = ["IGNORED", "NAMES", "PREFIXES", "RENAMED", "TIED", "names", "spec"]

FAMILY = Family(spec, names, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, renamed=RENAMED)
