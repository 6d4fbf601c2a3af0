"""mlx-lm's model types: one file each, which converts a spec to the config that mlx-lm reads."""
