// Stands in for MLX's: the shim's functions take bfloat already.
#pragma once
