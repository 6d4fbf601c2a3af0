"""The torch back end: a generic `torch.nn.Module` built from a spec, its KV cache, and encoder–decoder models."""
