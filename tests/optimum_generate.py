"""Greedy tokens of a folder in Optimum: `optimum_generate.py FOLDER 'ids' COUNT [CLASS]`. For a Python with optimum-onnx."""

import json
import sys

import torch
from optimum import onnxruntime

folder, ids, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
kind = sys.argv[4] if len(sys.argv) > 4 else "ORTModelForCausalLM"
model = getattr(onnxruntime, kind).from_pretrained(folder, provider="CPUExecutionProvider")
prompt = torch.tensor([ids])
made = model.generate(
    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, eos_token_id=None
)
print(json.dumps(made[0, 1 if "Seq2Seq" in kind else len(ids) :].tolist()))
