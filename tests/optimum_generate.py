"""Greedy tokens of a folder in Optimum: `optimum_generate.py FOLDER 'ids' COUNT`. Run by a Python that has optimum-onnx."""

import json
import sys

import torch
from optimum.onnxruntime import ORTModelForCausalLM

folder, ids, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = ORTModelForCausalLM.from_pretrained(folder, provider="CPUExecutionProvider")
prompt = torch.tensor([ids])
made = model.generate(
    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, eos_token_id=None
)
print(json.dumps(made[0, len(ids) :].tolist()))
