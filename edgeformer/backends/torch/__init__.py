"""The torch back end: a generic `torch.nn.Module` from a spec, its cache, and encoder–decoder models."""
