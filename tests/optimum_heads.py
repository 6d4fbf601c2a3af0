"""Outputs of encoders with heads in Optimum: `optimum_heads.py ROOT REQUESTS.json`. For a Python with optimum-onnx."""

import json
import sys
from pathlib import Path

import torch
from optimum import onnxruntime

root = Path(sys.argv[1])
for request in json.loads(Path(sys.argv[2]).read_text()):
    kind = getattr(onnxruntime, request["kind"].replace("AutoModel", "ORTModel"))
    model = kind.from_pretrained(root / request["folder"], provider="CPUExecutionProvider")
    ids = torch.tensor([request["ids"]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if request["names"]["types"]:
        given["token_type_ids"] = torch.zeros_like(ids)
    made = model(**given)
    outputs = [made[name].flatten().tolist() for name in request["names"]["outputs"]]
    print(json.dumps({"folder": request["folder"], "outputs": outputs, "labels": model.config.id2label}))
