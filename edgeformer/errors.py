"""Errors that a user can act on: what was given, the rule it breaks, what to do.

The command line prints the message of an `EdgeformerError` and exits with its `exit_code`; any other exception is a
bug of ours and keeps its traceback.
"""


class EdgeformerError(Exception):
    """Base of every error that edgeformer raises on purpose."""

    exit_code = 2


class SpecError(EdgeformerError):
    """A spec that contradicts itself, or a spec file that can't be read."""


class ConfigError(EdgeformerError):
    """A `config.json` with a model_type, a key or a value that no family file understands."""


class CheckpointError(EdgeformerError):
    """Weights that are missing, left over, misshapen, truncated or corrupt."""


class ModelNotFound(EdgeformerError):
    """MODEL is neither a folder, a spec file, a named spec nor a reachable hub id."""


class ExportError(EdgeformerError):
    """The requested artefact can't be written as asked."""


class ArtefactError(EdgeformerError):
    """A folder that is no edgeformer artefact, or whose files changed since it was written."""


class RuntimeUnavailable(EdgeformerError):
    """A runtime or an optional package is not installed; the message holds the install line."""


class PluginError(EdgeformerError):
    """A part that another package brings can't be imported, or fails."""


class RuntimeFault(EdgeformerError):
    """A runtime failed while it opened or ran a model."""


class InputError(EdgeformerError):
    """Token ids, masks or lengths that the model or the session can't take."""


class NumericError(EdgeformerError):
    """A model whose answers are no numbers: NaN or infinite logits."""

    exit_code = 1


class VerificationFailed(EdgeformerError):
    """An artefact was checked against its reference and says something else."""

    exit_code = 1


def is_fault(error: BaseException) -> bool:
    """Whether an exception is a fault of the code that raised it: none of ours, no interruption, no lack of memory. Panics of
    Rust's libraries are, though Python's `Exception` doesn't hold them."""
    return not isinstance(error, (EdgeformerError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError))
