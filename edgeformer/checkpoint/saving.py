"""Write an edgeformer checkpoint: a trained state dict beside its spec."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from edgeformer.errors import CheckpointError
from edgeformer.files.atomic import sync, sync_folder
from edgeformer.spec import Model, tensors
from edgeformer.spec.serialization import to_json


def save(spec: Model, state: Mapping[str, Any], folder: str | os.PathLike) -> Path:
    """Write an edgeformer checkpoint: `spec.json` and `model.safetensors` with canonical names.

    Args:
        spec: the model.
        state: canonical name -> torch tensor (a `state_dict()`, also of a compiled or wrapped module), MLX or numpy array.
        folder: made if needed; its two files are replaced only when both are complete.

    Raises:
        CheckpointError: names or shapes differ from the spec's; nothing is written.
    """
    folder = Path(folder)
    state = {re.sub(r"^(module\.)+|_orig_mod\.", "", name): tensor for name, tensor in state.items()}
    wanted, given = tensors(spec), {name: tuple(x.shape) for name, x in state.items()}
    if wrong := sorted(n for n in wanted.keys() | given.keys() if wanted.get(n) != given.get(n)):
        lines = [f"{n}: the spec has {wanted.get(n, 'none')}, the state {given.get(n, 'none')}" for n in wrong[:12]]
        raise CheckpointError(
            f"the state does not fit the spec, {len(wrong)} tensors differ:\n    " + "\n    ".join(lines)
        )
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "model.safetensors.partial"
    if any(hasattr(x, "detach") for x in state.values()):
        import torch
        from safetensors.torch import save_file

        save_file({k: torch.as_tensor(v).detach().contiguous() for k, v in state.items()}, str(partial))
    else:
        from safetensors.numpy import save_file as save_numpy

        save_numpy({name: as_numpy(x) for name, x in state.items()}, str(partial))
    written = folder / "spec.json.partial"
    written.write_text(json.dumps(to_json(spec), indent=1))
    partial.chmod(written.stat().st_mode)  # safetensors makes files that only the owner can read, whatever the umask
    sync(partial)
    sync(written)
    os.replace(partial, folder / "model.safetensors")
    os.replace(written, folder / "spec.json")
    sync_folder(folder)
    return folder


def as_numpy(x: object) -> np.ndarray:
    """A numpy or MLX array as a numpy array; MLX's bfloat16 has no buffer format that numpy knows."""
    if str(getattr(x, "dtype", "")) == "mlx.core.bfloat16":
        import mlx.core as mx

        assert isinstance(x, mx.array)
        return np.array(x.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(x)
