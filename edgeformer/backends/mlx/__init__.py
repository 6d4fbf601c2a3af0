"""The MLX back end: the op vocabulary on `mlx.core`, a generic `mlx.nn.Module` built from a spec, and a lean decode path.

`ops` is the vocabulary, `module` the trainable model, `store` the KV cache; `load` reads weights, `packing` packs linear maps
that share an input, `decode` runs prefill and decode steps, `sampling` samples tokens on the device, `launches` counts kernel
launches, `fit` checks whether a model fits into memory.
"""
