"""MLX export: folders that mlx-lm loads; `types/` has one file per mlx-lm model type that needs no code from edgeformer."""
