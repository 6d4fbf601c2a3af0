"""Runtimes: one file each, found by its name. A runtime opens an artefact or a checkpoint and returns logits.

A file `runtimes/<name>.py` (or a module behind an entry point in the group `edgeformer.runtimes`) defines `class Runtime`,
a subclass of `edgeformer.inference.runtime.Runtime`. The harness owns timing, sampling, memory and comparison.
"""
