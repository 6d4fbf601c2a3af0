"""The MLX back end: the op vocabulary on `mlx.core`, a generic `mlx.nn.Module` from a spec, and a lean decode path.

`ops` is the vocabulary, `module` the trainable model, `store` the cache, `load` brings weights in, `packing` joins
maps of one input, `decode` runs prefill and decode steps, `sampling` chooses tokens on the device, `launches` counts
kernel launches, `fit` says whether a model fits into memory.
"""
