"""Address spaces, which C++ doesn't have and the emulator therefore doesn't see: every kernel's generated text is parsed by
clang with real ones."""

from __future__ import annotations

import re

import pytest

mx = pytest.importorskip("mlx.core")
pytest.importorskip("clang.cindex")

from metal_emulator import bridge  # noqa: E402
from metal_emulator.lint import problems  # noqa: E402

from edgeformer.backends.mlx import metal  # noqa: E402
from edgeformer.backends.mlx.metal._kernel import FLOATS, built  # noqa: E402


def launches(name, dtype, source=None):
    """What MLX would launch for each of a kernel's cases."""
    found = []

    def capture(*, inputs, output_shapes, output_dtypes, **call):
        kernel = built(type(metal.get(name)), source)
        call |= {"output_shapes": output_shapes, "output_dtypes": output_dtypes}
        found.append(bridge.captured(kernel, inputs, **call))
        return [mx.zeros(s, d) for s, d in zip(output_shapes, output_dtypes, strict=True)]

    kernel = metal.get(name)
    kernel.launch = capture
    for case in kernel.cases(dtype):
        case.call(kernel)
    return found


@pytest.mark.parametrize("name", metal.names())
def test_kernels_are_clean(name):
    for dtype in FLOATS:
        for launch in launches(name, dtype):
            assert problems(launch) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("rope_pack", "const device T* in", "const T* in", "cannot initialize"),
        ("rope_pack", "const device T* in", "const constant T* in", "cannot initialize"),
        ("rope_pack", "out[i] = in[i];", "packed[i] = in[i];", "read-only|const"),
        ("add_rms_norm", "total[start + i] = sum;", "device float* p = sums; p[i] = sum;", "cannot initialize"),
        ("add_rms_norm", "metal::precise::rsqrt", "metal::erf", "erf"),
        ("add_rms_norm", "const T sum = T(", "const T sum = wrong(", "undeclared"),
    ],
)
def test_what_it_notices(name, old, new, message):
    source = metal.get(name).source()
    assert old in source
    found = problems(launches(name, mx.float32, source.replace(old, new, 1))[0])
    assert found and any(re.search(message, p) for p in found), found
