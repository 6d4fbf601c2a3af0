"""ONNX Runtime's execution providers: those of the installed build, and plug-ins (distributions named `onnxruntime-ep-...`).

The share of a graph that a provider claimed, in nodes and FLOPs, and a profile's operations by block: both need the exported
node that an inlined node came from. ONNX Runtime names the nodes of function bodies after the function and a counter.
"""

from __future__ import annotations

import importlib
import json
import math
from collections import defaultdict
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from edgeformer.errors import RuntimeUnavailable
from edgeformer.inference.profile import Operation, block_of
from edgeformer.spec import Model
from edgeformer.weights.costs import attention_flops

CPU = "CPUExecutionProvider"
TARGETS = {"cuda": "cuda", "coreml": "coreml", "webgpu": "webgpu", "openvino": "portable"}
"""Provider -> the export target made for it; all others use `cpu`."""
KNOWN = ("cuda", "coreml", "webgpu", "mlx", "openvino", "tensorrt", "dml", "rocm", "qnn", "xnnpack")
CONTEXT = 512
"""Cached tokens at which attention's FLOPs are counted."""
_PRODUCTS = frozenset(("MatMul", "FusedMatMul", "Gemm", "MatMulNBits", "MatMulInteger", "FusedGemm", "TransposeMatMul"))
_ATTENTION = frozenset(("GroupQueryAttention", "MultiHeadAttention", "Attention"))


def built_in() -> dict[str, str]:
    """Short name -> execution provider of this onnxruntime build, without those of the CPU and Azure, which are no variants."""
    import onnxruntime

    names = [n for n in onnxruntime.get_available_providers() if n not in (CPU, "AzureExecutionProvider")]
    return {name.removesuffix("ExecutionProvider").lower(): name for name in names}


def plugins() -> dict[str, str]:
    """Short name -> module of installed plug-ins."""
    found = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith("onnxruntime-ep-"):
            found[name.removeprefix("onnxruntime-ep-")] = name.replace("-", "_")
    return found


def missing(variant: str) -> str | None:
    """None, or why this provider can't be used here."""
    if variant in built_in() or variant in plugins():
        return None
    have = ", ".join(sorted({*built_in(), *plugins()})) or "only the CPU provider"
    lines = {"cuda": "onnxruntime-gpu", "openvino": "onnxruntime-openvino", "dml": "onnxruntime-directml"}
    package = lines.get(variant, f"onnxruntime-ep-{variant}")
    hint = "it is part of the macOS builds" if variant == "coreml" else f"pip install {package}"
    return f"this onnxruntime has no {variant} provider ({hint}); it has {have}"


def use(variant: str, settings: Any) -> list[str]:
    """Prepare session settings for a provider; returns the session's list of providers, empty if the settings name the provider.

    Raises:
        RuntimeUnavailable: the provider is not installed, or finds no device.
    """
    import onnxruntime

    if variant in ("", "kernels"):
        return [CPU]
    if (reason := missing(variant)) is not None:
        raise RuntimeUnavailable(reason)
    if variant in plugins():
        plugin = importlib.import_module(plugins()[variant])
        name = plugin.get_ep_name()
        if name not in {device.ep_name for device in onnxruntime.get_ep_devices()}:
            onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name][:1]
        if not devices:
            raise RuntimeUnavailable(f"the plug-in of the {variant} provider is installed but finds no device here")
        settings.add_provider_for_devices(devices, {})
        return []
    return [built_in()[variant], CPU]


def exported(model: Any) -> dict[str, Any]:
    """Name after inlining -> node of the exported graph, which may be the body of a function that the file calls as a whole."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    nodes = list(model.graph.node)
    whole = functions.get((nodes[0].domain, nodes[0].op_type, nodes[0].overload)) if len(nodes) == 1 else None
    if whole is None:
        return {node.name: node for node in nodes}
    return {f"_inlfunc_{whole.name}_{node.name}": node for node in whole.node}


def owners(model: Any) -> dict[str, Any]:
    """Name of a node after inlining -> the node of the exported graph that it came from.

    model: the file's ModelProto. ONNX Runtime 1.31's scheme: `_inlfunc_<function>_<node>`; from a function's second use on with
    `_token_<n>`, where n counts these uses across all functions.
    """
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    nodes = exported(model)
    found: dict[str, Any] = {**{node.name: node for node in model.graph.node}, **nodes}
    used, count = set(), 0
    for node in nodes.values():
        function = functions.get((node.domain, node.op_type, node.overload))
        if function is None:
            continue
        prefix = f"_inlfunc_{function.name}"
        if prefix in used:
            prefix, count = f"{prefix}_token_{count}", count + 1
        else:
            used.add(prefix)
        found |= {f"{prefix}_{body.name}": node for body in function.node}
    return found


def owner(name: str, table: dict[str, Any]) -> Any:
    """The exported node behind a profile event or an assigned node; None for nodes that ONNX Runtime added."""
    while name not in table and "/" in name:  # "<node>/QuickGeluFusion/"
        name = name.rstrip("/").rpartition("/")[0]
    return table.get(name)


def claims(file: Path, session: Any, spec: Model) -> dict[str, Any]:
    """What the session's provider claimed: nodes, and the share of a decode step's FLOPs; {} if onnxruntime doesn't report it.

    FLOPs are those of weight products, and of attention over 512 tokens. The session must have been opened with
    `session.record_ep_graph_assignment_info`.
    """
    import onnx

    provider = session.get_providers()[0]
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {"provider_flops": 1.0} if provider == CPU else {}
    model = onnx.load(str(file), load_external_data=False)
    table = owners(model)
    sizes = {i.name: math.prod(i.dims) for i in model.graph.initializer if len(i.dims) >= 2}
    layers = sum(1 for node in exported(model).values() if "Attention" in node.op_type) or 1
    heavy: dict[str, list[bool]] = defaultdict(list)
    work: dict[str, float] = {}
    nodes = {True: 0, False: 0}
    for part in session.get_provider_graph_assignment_info():
        mine = part.ep_name == provider or (provider == CPU and "CPU" in part.ep_name)
        for node in part.get_nodes():
            nodes[mine] += 1
            source = owner(node.name, table)
            if source is None or node.op_type not in _PRODUCTS | _ATTENTION:
                continue
            heavy[source.name].append(mine)
            if node.op_type in _ATTENTION:
                work[source.name] = attention_flops(spec, CONTEXT) / layers
            else:
                work[source.name] = 2.0 * sum(sizes.get(name, 0) for name in source.input)
    if not work and nodes[True] == sum(nodes.values()):  # one kernel for everything
        return {"provider_nodes": nodes[True], "nodes": nodes[True], "provider_flops": 1.0}
    total = sum(work.values())
    claimed = sum(work[name] * sum(mine) / len(mine) for name, mine in heavy.items())
    share = claimed / total if total else None
    return {"provider_nodes": nodes[True], "nodes": sum(nodes.values()), "provider_flops": share}


def operations(profile: Path, file: Path, skip_runs: int) -> list[Operation]:
    """Kernel times of a profile by operation, from the runs after the first `skip_runs`."""
    import onnx

    events = json.loads(profile.read_text())
    runs = sorted(e["ts"] for e in events if e.get("cat") == "Session" and e["name"] == "model_run")
    since = runs[skip_runs] if skip_runs < len(runs) else 0
    table = owners(onnx.load(str(file), load_external_data=False))
    found: dict[tuple[str, str], Operation] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time") or event["ts"] < since:
            continue
        source = owner(event["name"].removesuffix("_kernel_time"), table)
        block = "other" if source is None else block_of(source.name)
        key = (block, event["args"]["op_name"])
        operation = found.setdefault(key, Operation(*key))
        operation.ns += event["dur"] * 1000
        operation.count += 1
    return list(found.values())
