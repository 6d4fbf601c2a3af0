"""Hugging Face families: one file per `model_type`, found by its name. `named/` holds configs of well-known models.

A family file has

- `spec(config: HfConfig) -> Model`, which reads every key it understands and names what it ignores,
- `NAMES`, canonical tensor name -> stored name (`{i}` is the layer), a `Part` where the stored tensor differs,
- optionally `PREFIXES` that stored names may have; `IGNORED`, regular expression -> why such tensors are left aside;
  `TIED`, stored name -> canonical tensor it must equal to be left aside; `RENAMED`, old spellings of stored names.
"""
