"""Runs Metal kernels on a CPU: the text that MLX generates, compiled as C++ against a shim of Metal, with fibers as threads.

`program` turns Metal into C++ and runs it, `bridge` gets a kernel's text and launch from MLX itself.
"""
