"""Errors that a user can act on: what was given, the rule it breaks, what to do.

The command line prints the message of an `EdgeformerError` and exits with its `exit_code`; any other exception is a
bug in edgeformer and keeps its traceback.
"""


class EdgeformerError(Exception):
    """Base of every error that edgeformer raises on purpose."""

    exit_code = 2


class SpecError(EdgeformerError):
    """A spec that contradicts itself, or a spec file that can't be read."""


class ConfigError(EdgeformerError):
    """A `config.json` with a model_type, a key or a value that no family file supports."""


class CheckpointError(EdgeformerError):
    """Weights that are missing, unused, of the wrong shape, truncated or corrupt."""


class ModelNotFound(EdgeformerError):
    """MODEL is neither a folder, a spec file, a named spec nor a reachable hub id."""


class ExportError(EdgeformerError):
    """The requested artefact can't be written as asked."""


class ArtefactError(EdgeformerError):
    """A folder that is not an edgeformer artefact, or whose files have changed since it was written."""


class RuntimeUnavailable(EdgeformerError):
    """A runtime or an optional package is not installed; the message holds the install line."""


class PluginError(EdgeformerError):
    """A plug-in from another package fails or can't be imported, or a part doesn't declare what it must."""


class RuntimeFault(EdgeformerError):
    """A runtime failed while it opened or ran a model."""


class InputError(EdgeformerError):
    """Token ids, masks or lengths that the model or the session can't accept."""


class NumericError(EdgeformerError):
    """A model whose outputs are not finite: NaN or infinite logits."""

    exit_code = 1


class VerificationFailed(EdgeformerError):
    """An artefact was checked against its reference, and its outputs differ."""

    exit_code = 1


def is_fault(error: BaseException) -> bool:
    """Whether an exception is a fault of the code that raised it: not an `EdgeformerError`, an interrupt or lack of memory.
    Panics in Rust libraries count, although they don't derive from Python's `Exception`."""
    return not isinstance(error, (EdgeformerError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError))
