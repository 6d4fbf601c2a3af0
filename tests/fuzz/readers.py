"""Our readers beside the official ones, over the same damaged files: what those refuse is refused, what both read is equal."""

from __future__ import annotations

import collections
import functools
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mutations import damaged, encoded, mutated, text_of

from edgeformer.errors import CheckpointError
from edgeformer.weights.gguf_header import read_gguf_header
from edgeformer.weights.onnx_file import read_initializers
from edgeformer.weights.safetensors_file import read_header

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F64": 8}


def _safetensors(random: random.Random) -> bytes:
    """A small file, sound."""
    header: dict = {"__metadata__": {"format": "pt", "x": "y"}} if random.random() < 0.5 else {}
    at = 0
    for i in range(random.randrange(5)):
        dtype = random.choice(list(SIZES))
        shape = [random.randrange(4) for _ in range(random.randrange(4))]
        size = int(np.prod(shape, dtype=int)) * SIZES[dtype]
        header[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    if random.random() < 0.5:
        header = mutated(random, header)
    text = encoded(random, text_of(random, header)) + b" " * random.randrange(3)
    return struct.pack("<Q", len(text)) + text + random.randbytes(at)


def safetensors(random: random.Random, folder: Path) -> str | None:
    """One file; what is wrong with our reading of it, or None."""
    from safetensors import safe_open

    file = folder / "model.safetensors"
    data = _safetensors(random)
    if random.random() < 0.5:
        data = damaged(random, data, head=len(data))
    file.write_bytes(data)
    official: dict[str, bytes] | None = None
    try:
        with safe_open(str(file), framework="numpy") as f:
            official = {name: _bytes(f, name) for name in f.keys()}  # noqa: SIM118 a safe_open is no dict
    except Exception:
        pass
    try:
        ours = read_header(file)
    except CheckpointError as e:
        if official is None or _twice_or_listed(data) or len(str(e)) > 1000:
            return None if len(str(e)) < 1000 else f"a message of {len(str(e))} characters"
        return f"refused what the package reads: {e}"
    if official is None:
        return "read what the package refuses"
    read["safetensors"] += 1
    if ours.keys() != official.keys():
        return f"names {sorted(ours)} and {sorted(official)}"
    for name, tensor in ours.items():
        if data[tensor.offset : tensor.offset + tensor.nbytes] != official[name] and official[name] != b"?":
            return f"{name} differs"
    return None


def _bytes(opened, name: str) -> bytes:
    try:
        return opened.get_tensor(name).tobytes()
    except Exception:  # types that numpy has no name for
        return b"?"


def _twice_or_listed(data: bytes) -> bool:
    """The two things that the package reads and we refuse: a name that stands twice, of which it takes the last, and a tensor as
    a list instead of an object."""
    text = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
    twice = False

    def once(pairs: list) -> dict:
        nonlocal twice
        twice |= len(dict(pairs)) != len(pairs)
        return dict(pairs)

    header = json.loads(text, object_pairs_hook=once)
    entries = [v for k, v in header.items() if k != "__metadata__"]
    return twice or any(not isinstance(e, dict) or isinstance(e["dtype"], dict) for e in entries)


def gguf(random: random.Random, folder: Path) -> str | None:
    """One file; what is wrong with our reading of it, or None."""
    import gguf as package

    file = folder / "model.gguf"
    file.write_bytes(damaged(random, _gguf(folder), head=600))
    try:
        ours = read_gguf_header(file)
    except CheckpointError as e:  # llama.cpp refuses more than the package, and the package reads some counts for ever
        return None if len(str(e)) < 1000 else f"a message of {len(str(e))} characters"
    try:
        official = package.GGUFReader(str(file))
    except Exception as e:
        return f"read what the package refuses: {e}"
    read["gguf"] += 1
    theirs = {
        t.name: (tuple(int(n) for n in reversed(t.shape)), t.tensor_type.name, int(t.data_offset), int(t.n_bytes))
        for t in official.tensors
    }
    if {n: (t.shape, t.type, t.offset, t.nbytes) for n, t in ours.tensors.items()} != theirs:
        return "other tensors"
    for name, value in ours.fields.items():
        if repr(official.fields[name].contents()) != repr(value):
            return f"{name} is {value!r}, and {official.fields[name].contents()!r}"
    return None


@functools.cache
def _gguf(folder: Path) -> bytes:
    """A small file, sound, as the package writes it."""
    import gguf as package

    file = folder / "sound.gguf"
    writer = package.GGUFWriter(str(file), "llama")
    writer.add_block_count(2)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("llama.flag", True)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "cc", "é"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.0, 2.0, -1.0])
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((32, 34), np.uint8), raw_dtype=package.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    data = file.read_bytes()
    file.unlink()
    return data


def onnx(random: random.Random, folder: Path) -> str | None:
    """One file, damaged in its message or its bytes; what is wrong with our reading of it, or None."""
    import onnx as package

    file = folder / "model.onnx"
    (folder / "model.onnx.data").write_bytes(bytes(64))
    model = package.ModelProto()
    model.ParseFromString(_onnx())
    if random.random() < 0.6:
        _change_entry(random, model)
        data = model.SerializeToString()
    else:
        data = damaged(random, _onnx(), head=2000)
    file.write_bytes(data)
    try:
        package.checker.check_model(str(file))
        official = None
    except Exception as e:
        official = str(e)
    try:
        read_initializers(file)
    except CheckpointError as e:
        return None if len(str(e)) < 1000 else f"a message of {len(str(e))} characters"
    if official is not None:
        return f"read what the checker refuses: {official[:200]}"
    read["onnx"] += 1
    return None


def _change_entry(random: random.Random, model) -> None:
    tensor = random.choice(model.graph.initializer)
    entry = random.choice(tensor.external_data)
    what = random.random()
    if what < 0.5:
        places = ("../up", "/etc/passwd", "", "model.onnx.data", "other", "a/../../b", ".", "x" * 300)
        numbers = ("-1", "0", "8", "9" * 30, "", "abc", "1e3", "0x10", " 8", "+8", "64", "65")
        entry.value = random.choice(places if entry.key == "location" else numbers)
    elif what < 0.7:
        entry.key = random.choice(("location", "offset", "length", "", "checksum"))
    elif what < 0.85:
        tensor.dims[0] = random.choice((-1, 0, 1, 2**31, 2**62))
    else:
        tensor.data_type = random.choice((0, 1, 2, 7, 10, 99))


@functools.cache
def _onnx() -> bytes:
    """A small model with two tensors beside it."""
    from onnx import TensorProto, helper

    def external(name: str, offset: int) -> TensorProto:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[8], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "model.onnx.data"), ("offset", str(offset)), ("length", "32")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        return tensor

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [8]) for name in "xy")
    nodes = [helper.make_node("Add", ["x", "a"], ["z"]), helper.make_node("Mul", ["z", "b"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=[external("a", 0), external("b", 32)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()


READERS = {"safetensors": safetensors, "gguf": gguf, "onnx": onnx}
read: collections.Counter[str] = collections.Counter()
"""How many files both read."""


def compare(name: str, seed: int, count: int, folder: Path) -> Iterator[tuple[int, str]]:
    """The seeds, of so many files, whose reading differs, with what differs."""
    for i in range(seed, seed + count):
        if (wrong := READERS[name](random.Random(i), folder)) is not None:
            yield i, wrong
