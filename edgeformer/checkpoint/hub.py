"""Download models by hub id: `owner/name`, or `owner/name/FILE.gguf`."""

from __future__ import annotations

from pathlib import Path

from edgeformer.checkpoint.companions.files import DOWNLOADED
from edgeformer.errors import ModelNotFound


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id: owner/name, or a GGUF file's path below one."""
    parts = name.count("/")
    return not name.startswith((".", "/", "~")) and (parts == 1 or (parts >= 2 and name.endswith(".gguf")))


def download(hub_id: str, revision: str | None) -> Path:
    """The folder of a hub id in the Hugging Face cache, or the file of `owner/name/FILE.gguf`; downloaded if it isn't there.

    GGUF files are downloaded only by name: a repository may hold twenty of them.

    Raises:
        ModelNotFound: there is no such id, or the hub can't be reached.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, file = hub_id, "", ""
    if hub_id.endswith(".gguf"):
        owner, name, file = hub_id.split("/", 2)
        repository = f"{owner}/{name}"
    try:
        if file:
            return Path(hf_hub_download(repository, file, revision=revision))
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(DOWNLOADED)))
    except LocalEntryNotFoundError as e:
        raise ModelNotFound(
            f"{hub_id!r} is not a local folder or file, is not in the Hugging Face cache, and the hub can't be reached"
            " (offline?). Go online once to download it, or give a folder"
        ) from e
    except (HfHubHTTPError, OSError, ValueError) as e:
        raise ModelNotFound(
            f"{hub_id!r} is not a local folder or file, and the hub answers: {str(e).splitlines()[0]}"
        ) from e
