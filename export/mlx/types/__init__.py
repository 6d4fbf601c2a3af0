"""Which architectures mlx-lm knows: one file per model type, that writes a spec as the config mlx-lm reads."""
