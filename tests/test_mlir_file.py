"""Core AI's bytecode, read by our own parser: files that lie get one error, at once."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest

from edgeformer.errors import CheckpointError
from edgeformer.weights.mlir_file import read_asset, read_blobs


def varint(number: int) -> bytes:
    """MLIR's: the zeros below the lowest set bit count the bytes that follow."""
    size = next(n for n in range(1, 9) if number < 1 << (7 * n))
    return ((number << 1 | 1) << (size - 1)).to_bytes(size, "little")


def section(kind: int, data: bytes) -> bytes:
    return bytes([kind]) + varint(len(data)) + data


def bytecode(blobs: list[tuple[str, bytes]], producer: bytes = b"test\0") -> bytes:
    """A file with these blobs, in the layout of MLIR's bytecode of version 6."""
    names = [name.encode() + b"\0" for name, _ in blobs]
    strings = varint(len(names)) + b"".join(varint(len(n)) for n in reversed(names)) + b"".join(names)
    entries = [varint(1) + varint(len(data)) + data for _, data in blobs]  # aligned to 1 byte
    sizes = varint(0) + varint(0) + varint(len(blobs))
    sizes += b"".join(varint(n) + varint(len(e)) + b"\0" for n, e in enumerate(entries))
    return b"ML\xefR" + varint(6) + producer + section(0, strings) + section(5, b"".join(entries)) + section(6, sizes)


def written(folder, blobs, **options):
    (folder / "main.mlirb").write_bytes(bytecode(blobs, **options))
    return folder


def test_blobs_and_weights(tmp_path):
    x = np.arange(6, dtype=np.float32)
    codes, scales = bytes(range(32)), np.full((2, 1), 0.5, np.float16)
    blobs = [("a:F32:2x3", x.tobytes()), ("q:Q4:2x32", codes), ("q.scales:F16:2x1", scales.tobytes()), ("other", b"zz")]
    found = read_asset(written(tmp_path, blobs))
    assert set(found) == {"a", "q"} and np.array_equal(found["a"].read(), x.reshape(2, 3))
    packed, halves = found["q"].quantized()
    assert np.array_equal(packed, np.frombuffer(codes, np.uint8).reshape(2, 16) ^ 0x88) and np.array_equal(
        halves, scales
    )
    assert [data for _, data in blobs] == [
        (tmp_path / "main.mlirb").read_bytes()[a : a + n] for a, n in read_blobs(tmp_path / "main.mlirb").values()
    ]


@pytest.mark.parametrize(
    ("blobs", "words"),
    [
        ([("a:F32:2x3", b"x" * 20)], "has 20 bytes"),
        ([("a:F32:2xx3", b"")], "no valid shape"),
        ([("a:F32:" + "x".join("1" * 80), b"xxxx")], "no valid shape"),
        ([("a:F32:" + "x".join(["99999999999"] * 50_000), b"xxxx")], "no valid shape"),
        ([("a:F32:\u0661", b"xxxx")], "no valid shape"),
        ([("a:F32:1", b"xxxx"), ("a:F32:1", b"yyyy")], "occurs twice"),
        ([("a:Q4:2x48", b"x" * 48), ("a.scales:F16:2x1", b"x" * 4)], "no scales that fit"),
        ([("a:Q4:2x32", b"x" * 32)], "no scales that fit"),
        ([("a:Q4:2x32", b"x" * 32), ("a.scales:BF16:2x1", b"x" * 4)], "no scales that fit"),
    ],
)
def test_names_that_lie(blobs, words, tmp_path):
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=words):
        read_asset(written(tmp_path, blobs))
    assert time.perf_counter() - start < 30


def test_scales_that_are_no_halves(tmp_path):
    for scale in (1e30, 0.1):
        blobs = [("q:Q4:1x32", bytes(16)), ("q.scales:F32:1x1", np.float32(scale).tobytes())]
        with pytest.raises(CheckpointError, match="no fp16 numbers"):
            read_asset(written(tmp_path, blobs))["q"].read()


def test_a_writer_without_an_end_and_many_sections(tmp_path):
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="has no end"):
        read_asset(written(tmp_path, [], producer=b"x" * 50_000_000))
    (tmp_path / "main.mlirb").write_bytes(b"ML\xefR" + varint(6) + b"\0" + section(9, b"") * 10_000_000)
    with pytest.raises(CheckpointError, match="more than 64 sections"):
        read_asset(tmp_path)
    assert time.perf_counter() - start < 30


def test_cut_anywhere(tmp_path):
    whole = bytecode([("a:F32:2", b"x" * 8), ("b:F16:4", b"y" * 8)])
    for end in range(len(whole)):
        (tmp_path / "main.mlirb").write_bytes(whole[:end])
        with contextlib.suppress(CheckpointError):
            assert set(read_asset(tmp_path)) <= {"a", "b"}
