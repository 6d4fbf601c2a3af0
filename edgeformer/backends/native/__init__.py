"""The native back end: a spec as a list of instructions, run by a C++ engine with kernels for each instruction set.

`record` and `ops` get the instructions from the layers' own `apply`; `program` gives them buffers and matrices; `model` loads
weights into tiles and steps; `library` builds `src/`, or finds it built.
"""
