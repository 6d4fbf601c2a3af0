"""Load a checkpoint's tensors as MLX arrays, directly from its safetensors files, without torch and without a second copy.

`mlx.core.load` maps names to arrays that are read lazily; bf16 stays bf16.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from edgeformer.backends.mlx.encoder_decoder import mlx_model
from edgeformer.backends.mlx.module import MlxModel
from edgeformer.backends.mlx.ops import MlxOps
from edgeformer.backends.mlx.stacked import QuantizedStacked, Stacked
from edgeformer.spec import Model
from edgeformer.weights.affine import AffineTensor
from edgeformer.weights.binding import Source, Weights
from edgeformer.weights.formats import GROUP, QuantizedTensor
from edgeformer.weights.parts import Cut
from edgeformer.weights.precision import FLOAT_TYPES
from edgeformer.weights.safetensors_file import StoredTensor

DTYPES: dict[str, mx.Dtype] = {name: getattr(mx, t.library) for name, t in FLOAT_TYPES.items()}
"""precision -> dtype of weights and arithmetic. Norms, softmax and RoPE angles are always computed in float32."""


class MlxWeights:
    """A checkpoint's tensors by canonical name, lazy: a tensor is read when it is evaluated, and released after its last
    use."""

    def __init__(self, weights: Weights):
        self.sources = weights.sources
        self._files: dict[Path, dict[str, mx.array]] = {}
        self._left = Counter((t.file, t.name) for s in self.sources.values() for t in s.stored.parts())

    def _stored(self, tensor: StoredTensor, part: Cut | None) -> mx.array:
        if tensor.file not in self._files:
            self._files[tensor.file] = mx.load(str(tensor.file), format="safetensors")  # type: ignore[assignment]
            tensor.check_unchanged()
        self._left[tensor.file, tensor.name] -= 1
        file = self._files[tensor.file]
        x = file[tensor.name] if self._left[tensor.file, tensor.name] else file.pop(tensor.name)
        return x if part is None else mx.contiguous(part.take(x))

    def tensor(self, name: str) -> mx.array:
        """A tensor in its stored dtype; quantized ones are dequantized to float32."""
        source = self.sources[name]
        if (
            not source.stored.raw or source.stored.file.suffix != ".safetensors"
        ):  # mx.load reads only raw tensors of safetensors files
            x = source.read()
            return mx.array(x.view(np.uint16)).view(mx.bfloat16) if x.dtype == ml_dtypes.bfloat16 else mx.array(x)
        return self._stored(source.stored, source.part)

    def quantized(self, name: str) -> tuple[int, int, dict[str, mx.array]] | None:
        """Bits, group size and `nn.QuantizedLinear`'s arrays of a quantized weight, by its names; None for unquantized weights
        and for slices that split groups."""
        stored, part = self.sources[name].stored, self.sources[name].part
        if part is not None and not part.whole_rows:
            return None
        if isinstance(stored, QuantizedTensor):
            codes, scales = (x if part is None else part.take(x) for x in stored.quantized())
            numbers = mx.array(scales)
            biases = numbers.astype(mx.float32) * -stored.format.zero
            held = {
                "weight": mx.array(np.ascontiguousarray(codes).view(np.uint32)),
                "scales": numbers,
                "biases": biases,
            }
            return stored.format.bits, GROUP, held
        if not isinstance(stored, AffineTensor):
            return None
        tensors = {"weight": stored, "scales": stored.scales, "biases": stored.biases}
        return stored.bits, stored.group_size, {key: self._stored(t, part) for key, t in tensors.items()}


def load_model(spec: Model, weights: Weights, precision: str = "fp32", ops: MlxOps | None = None) -> MlxModel:
    """Build the model with its weights, unpacked. Linear maps and tables that are stored quantized stay so, bit for bit.

    Args:
        spec: the architecture.
        weights: its tensors.
        precision: fp32, fp16 or bf16: the dtype of plain weights, activations, and scales of quantized weights.
        ops: the op vocabulary.
    """
    model, found, dtype = mlx_model(spec, ops), MlxWeights(weights), DTYPES[precision]
    plain: list[tuple[str, mx.array]] = []
    replaced: list[tuple[str, nn.Module]] = []
    modules = dict(model.named_modules())
    for name in found.sources:
        path = name.removesuffix(".weight")
        module, quantized = modules.get(path), found.quantized(name)
        if quantized is None or not isinstance(module, (nn.Linear, nn.Embedding, Stacked)):
            plain.append((name, found.tensor(name).astype(dtype)))
            mx.eval(
                plain[-1][1]
            )  # one by one, so that the stored dtype and the converted copy don't coexist for all tensors
            continue
        bits, group_size, arrays = quantized
        if isinstance(module, Stacked):
            made: nn.Module = QuantizedStacked(group_size, bits)
        else:
            kind = nn.QuantizedLinear if isinstance(module, nn.Linear) else nn.QuantizedEmbedding
            made = kind(group_size, group_size, group_size=group_size, bits=bits)
        made["weight"] = arrays["weight"]
        made["scales"], made["biases"] = arrays["scales"].astype(dtype), arrays["biases"].astype(dtype)
        if "bias" in made:
            del made["bias"]
        if "bias" in module:
            made["bias"] = module["bias"]
        if isinstance(made, nn.QuantizedEmbedding):
            made.num_embeddings, made.dims = found.sources[name].shape
        replaced.append((path, made))
    model.update_modules(tree_unflatten(replaced))
    model.update(tree_unflatten(plain))
    mx.eval(model.parameters())
    return model.eval()  # type: ignore[return-value]


def loaded_bytes(weights: Weights, precision: str) -> int:
    """Bytes of the weights once loaded."""
    return sum(_bytes(source, DTYPES[precision].size) for source in weights.sources.values())


def _bytes(source: Source, size: int) -> int:
    stored = source.stored
    if isinstance(stored, QuantizedTensor):
        return math.prod(stored.shape) * stored.format.bits // 8 + 2 * math.prod(stored.shape) // GROUP * size
    if isinstance(stored, AffineTensor):
        return int((stored.nbytes + 2 * math.prod(stored.scales.shape) * size) * source.share)
    return math.prod(source.shape) * size
