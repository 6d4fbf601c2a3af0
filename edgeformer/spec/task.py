"""What a model is for, by Hugging Face's names of pipelines."""

from enum import StrEnum


class Task(StrEnum):
    """The tasks that programs are built for."""

    TEXT_GENERATION = "text-generation"
    FEATURE_EXTRACTION = "feature-extraction"
    TEXT2TEXT_GENERATION = "text2text-generation"
