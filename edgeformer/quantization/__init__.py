"""Choosing codes and scales: a checkpoint in, a quantized checkpoint out. Each method is a file in `methods/`."""
