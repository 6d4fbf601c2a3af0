"""The `webgpu` target on ONNX Runtime's WebGPU plugin, on a software Vulkan device (Mesa's lavapipe).

`bash tests/webgpu/install` gets the driver from Debian backports; without it, or without onnxruntime-ep-webgpu, this is skipped.
It shows that the graph is right and which nodes the provider takes, not how fast anything is.
"""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from support import ROOT, STDLIB

from edgeformer import load
from edgeformer.api import export
from edgeformer.checkpoint.companions.tokenizer import read_tokenizer
from edgeformer.inference.lookup import require
from edgeformer.inference.runtime import Options

MESA = ROOT / "tests" / "webgpu" / "mesa"
available = (MESA / "lvp.json").exists() and importlib.util.find_spec("onnxruntime_ep_webgpu") is not None
HEAVY = (
    "MatMul",
    "Gemm",
    "MatMulNBits",
    "GroupQueryAttention",
    "SkipSimplifiedLayerNormalization",
    "Mul",
    "Sigmoid",
    "Add",
)


@pytest.mark.skipif(not available, reason="run tests/webgpu/install, and pip install onnxruntime-ep-webgpu")
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "q4", "q4f16"])
def test_webgpu(tmp_path, precision):
    """The oracle is the same bits in numpy's float32; half precision within its rounding."""
    export(load(STDLIB), tmp_path / "m", target="webgpu", precision=precision)
    ids = read_tokenizer(STDLIB).encode(
        "def main(argv=None):\n    parser = argparse.ArgumentParser(description=__doc__)"
    )
    libraries = MESA / "usr" / "lib" / "x86_64-linux-gnu"
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(libraries),
        "VK_DRIVER_FILES": str(MESA / "lvp.json"),
        "VK_ICD_FILENAMES": str(MESA / "lvp.json"),
        "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1",
        "LP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(ROOT / "tests" / "webgpu" / "run.py"), str(tmp_path / "m"), json.dumps(ids), "12"]
    run = subprocess.run(
        [*command, str(tmp_path / "out.npz")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")
    session = require("numpy")[0].open(load(tmp_path / "m"), Options())
    expected = session.forward(np.array([ids]), all_positions=True)[0]
    limit = 2e-2 + 1e-2 * np.abs(expected).max() if "16" in precision else 1e-3
    assert np.abs(found["logits"] - expected).max() <= limit
    ran = json.loads(str(found["ran"]))
    elsewhere = {k: n for k, n in ran.items() if k.split()[0] in HEAVY and not k.endswith("WebGpu")}
    assert sum(elsewhere.values()) <= 0.05 * sum(ran.values()), ran
