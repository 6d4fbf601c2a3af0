// Stands in for MLX's.
#pragma once
namespace mlx {
struct os_log {};
}
