"""MLX: folders that mlx-lm opens; `types/` has one file per model type of mlx-lm that fits without code of ours."""
