"""Model tasks, by their Hugging Face pipeline names."""

from enum import StrEnum


class Task(StrEnum):
    """The supported tasks."""

    TEXT_GENERATION = "text-generation"
    FEATURE_EXTRACTION = "feature-extraction"
    TEXT2TEXT_GENERATION = "text2text-generation"
