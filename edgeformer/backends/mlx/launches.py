"""Count the kernel launches of a decode step, from MLX's own recording of the step, not from a GPU trace.

`mx.export_function` reports every primitive of a function. On a machine without a GPU it would also expand `mx.fast` calls into
their fallbacks, so while recording they are replaced by placeholders, one per call. Views launch nothing; a chain of elementwise
operations counts once, as `mx.compile` would fuse it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from edgeformer.backends.mlx import metal
from edgeformer.backends.mlx.decode import DecodeSession
from edgeformer.backends.mlx.module import MlxModel
from edgeformer.backends.mlx.ops import MlxOps
from edgeformer.errors import InputError
from edgeformer.layers.stack import BlockStack
from edgeformer.ops.sampling import Sampling
from edgeformer.spec import Model
from edgeformer.spec.task import Task

VIEWS = frozenset((
    "AsStrided", "Broadcast", "BroadcastAxes", "Contiguous", "Copy", "Depends", "ExpandDims", "Flatten", "Reshape", "Slice",
    "Split", "Squeeze", "StopGradient", "Transpose", "Unflatten", "View",
))  # fmt: skip
"""Primitives that only create views. (A reshape that has to copy would launch a kernel; a decode step has none.)"""
ELEMENTWISE = frozenset((
    "Abs", "Add", "AsType", "BitwiseBinary", "Cos", "Divide", "Equal", "Erf", "Exp", "Greater", "GreaterEqual", "Less",
    "LessEqual", "Log", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum", "Multiply", "Negative", "NotEqual",
    "Power", "Rsqrt", "Select", "Sigmoid", "Sign", "Sin", "Sqrt", "Square", "Subtract", "Tanh",
))  # fmt: skip
_FAST = ("dequantize", "rms_norm", "layer_norm", "rope", "scaled_dot_product_attention")
Step = Callable[[mx.array, mx.array], Any]
"""One decode step of a token, int32 [1, 1], at a position, an int32 scalar."""
OFFSETS = "DynamicSliceUpdate"
"""According to MLX's source, this primitive launches a second, tiny kernel on Metal to compute the offset. It is not counted."""
_HISTORY = 8  # tokens in the cache before the recorded step


@dataclass(frozen=True)
class Count:
    """Launches of one decode step by name: `per_layer`, those that one more block adds, and `rest`, all others."""

    per_layer: dict[str, int]
    rest: dict[str, int]

    def layer(self) -> int:
        """Launches per layer."""
        return sum(self.per_layer.values())

    def step(self, layers: int) -> int:
        """Launches per step of a model with this many layers."""
        return layers * self.layer() + sum(self.rest.values())


def count(build: Callable[[int], Step]) -> Count:
    """Count by comparing models with one block and with two; `build(blocks)` returns the step."""
    # Every random weight depends on the previous key. MLX follows that chain recursively when it records a function, and its
    # stack overflows if many models were made before and none was evaluated.
    mx.eval(mx.random.state)
    one, two = (_by_name(record(build(blocks))) for blocks in (1, 2))
    per_layer = {name: n - one.get(name, 0) for name, n in two.items() if n != one.get(name, 0)}
    rest = {name: n - per_layer.get(name, 0) for name, n in one.items() if n != per_layer.get(name, 0)}
    return Count(per_layer, rest)


def ours(spec: Model, *, kernels: dict[str, Any] | None = None, bits: int | None = None) -> Count:
    """Count edgeformer's decode step: packed, compiled, greedy. bits: 4 or 8, for weights in groups of 64 where they fit."""
    require_decoder(spec)

    def build(blocks: int) -> Step:
        model = MlxModel(_shortened(spec, blocks), MlxOps(kernels))
        if bits is not None:
            _quantize(model, bits)
        model.pack(evaluate=False)
        decoder = DecodeSession(model, 1, _HISTORY * 2, compiled=False)
        function, arrays = decoder.step_function(_HISTORY * 2, Sampling()), list(decoder.store.arrays.values())

        def step(token: mx.array, start: mx.array) -> Any:
            token, key, written = function(token, start, None, mx.random.key(0), arrays)
            return [token, key, *written]

        return step

    return count(build)


def mlx_lms(config: Callable[[int], dict[str, Any]], *, bits: int | None = None) -> Count:
    """Count the decode step of mlx-lm's own model: greedy, with its own KV cache. `config`: its config for a number of blocks."""
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import _get_classes

    def build(blocks: int) -> Step:
        data = config(blocks)
        kind, arguments = _get_classes(data)
        model: Any = kind(arguments.from_dict(data))  # a class of mlx-lm, which declares no types
        if bits is not None:
            _quantize(model, bits)
        cache = make_prompt_cache(model)
        model(mx.zeros((1, _HISTORY), mx.int32), cache=cache)  # lazy: only sets the shapes of the cache's arrays
        for c in cache:
            c.keys, c.values = mx.zeros_like(c.keys), mx.zeros_like(c.values)

        def step(token: mx.array, start: mx.array) -> Any:
            logits = model(token, cache=cache)[:, -1]
            return [mx.argmax(logits, -1), *(x for c in cache for x in (c.keys, c.values))]

        return step

    return count(build)


def require_decoder(spec: Model) -> None:
    """Refuse models other than decoders.

    Raises:
        InputError: the model has no decode step.
    """
    if spec.task != Task.TEXT_GENERATION:
        raise InputError(f"a {spec.kind} has no decode step")


def _shortened(spec: Model, blocks: int) -> Model:
    assert isinstance(spec, BlockStack)
    return replace(spec, blocks=(spec.blocks[0],) * blocks)


def _quantize(model: nn.Module, bits: int) -> None:
    def fits(_: str, module: nn.Module) -> bool:
        return hasattr(module, "to_quantized") and module["weight"].shape[-1] % 64 == 0

    nn.quantize(model, group_size=64, bits=bits, class_predicate=fits)


def _by_name(launches: list[str]) -> dict[str, int]:
    return {name: launches.count(name) for name in dict.fromkeys(launches)}


def record(step: Step) -> list[str]:
    """The names of a step's launches, in order."""
    events: list[dict[str, Any]] = []
    with _placeholders():
        mx.export_function(events.append, step, mx.zeros((1, 1), mx.int32), mx.array(_HISTORY, mx.int32))
    inputs = next(e["inputs"] for e in events if e["type"] == "inputs")
    # array -> the launch that made it; 0 is the step's input
    made_by: dict[str, int] = {name: 0 for name, _, _ in inputs}
    names, shapes, before = ["input"], [None], [0]  # before: a bitmask of the launches that have to come first
    for event in (e for e in events if e["type"] == "primitive"):
        sources = [made_by[name] for name, _, _ in event["inputs"] if name in made_by]
        if not sources:
            continue  # weights and other constants, which a real step doesn't compute
        name, out = event["name"], event["outputs"][0]
        needed = 0
        for s in sources:
            needed |= before[s] | 1 << s
        launch = None
        if name in VIEWS:
            launch = sources[0]
        elif name in ELEMENTWISE:
            # fuse with an elementwise input of the same shape, unless another launch in between needs its result
            for s in sources:
                between = any(before[other] >> s & 1 for other in sources)
                if names[s] == "elementwise" and shapes[s] == out[1] and not between:
                    launch, before[s] = s, before[s] | needed & ~(1 << s)
                    break
        if launch is None:
            launch = len(names)
            names.append("elementwise" if name in ELEMENTWISE else _custom(event) if name == "CustomKernel" else name)
            shapes.append(out[1])
            before.append(needed)
        made_by |= {o[0]: launch for o in event["outputs"]}
    return names[1:]


def _custom(event: dict[str, Any]) -> str:
    """A custom kernel's own name, without the prefix and the type suffix that MLX adds."""
    full = event["arguments"][0].removeprefix("custom_kernel_")
    known = sorted([*_FAST, *metal.names()], key=len, reverse=True)
    return next((name for name in known if full.startswith(name)), full)


@contextlib.contextmanager
def _placeholders() -> Iterator[None]:
    """Replace `mx.fast` functions by ones that record a single custom kernel of the same name."""

    def kernel(name: str, inputs: int) -> Any:
        return mx.fast.metal_kernel(
            name=name, input_names=[f"a{i}" for i in range(inputs)], output_names=["y"], source=";"
        )

    def launch(
        made: Callable[..., list[mx.array]], arrays: list[mx.array], shape: tuple[int, ...], dtype: mx.Dtype
    ) -> mx.array:
        return made(
            inputs=arrays, output_shapes=[tuple(shape)], output_dtypes=[dtype], grid=(1, 1, 1), threadgroup=(1, 1, 1)
        )[0]

    norm, layer, rope, attention = (
        kernel("rms_norm", 1), kernel("layer_norm", 1), kernel("rope", 1), kernel("scaled_dot_product_attention", 3)
    )  # fmt: skip

    def sdpa(q: mx.array, k: mx.array, v: mx.array, **_: object) -> mx.array:
        return launch(attention, [q, k, v], (*q.shape[:-1], v.shape[-1]), q.dtype)

    stand_ins = {
        "rms_norm": lambda x, *_, **__: launch(norm, [x], x.shape, x.dtype),
        "layer_norm": lambda x, *_, **__: launch(layer, [x], x.shape, x.dtype),
        "rope": lambda x, *_, **__: launch(rope, [x], x.shape, x.dtype),
        "scaled_dot_product_attention": sdpa,
    }
    originals = {name: getattr(mx.fast, name) for name in stand_ins}
    custom, dequantize, made = mx.custom_function, mx.dequantize, kernel("dequantize", 2)

    def dequantized(w: mx.array, scales: mx.array, *_: object, group_size: int = 64, **__: object) -> mx.array:
        return launch(made, [w, scales], (*scales.shape[:-1], scales.shape[-1] * group_size), scales.dtype)

    try:
        mx.dequantize = dequantized  # type: ignore[assignment]
        for name, function in stand_ins.items():
            setattr(mx.fast, name, function)
        mx.custom_function = _Undifferentiated  # type: ignore[misc] # can't be exported, and launches no kernel itself
        yield
    finally:
        for name, function in originals.items():
            setattr(mx.fast, name, function)
        mx.custom_function, mx.dequantize = custom, dequantize  # type: ignore[misc]


class _Undifferentiated:
    """`mx.custom_function` without its gradient."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def vjp(self, gradient: Callable[..., Any]) -> Callable[..., Any]:
        return gradient

    def __call__(self, *arguments: object) -> Any:
        return self.function(*arguments)
