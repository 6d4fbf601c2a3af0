"""Upper limits on sizes that a file declares: above every known model, and below what a machine can't hold."""

import os

MAX_SIZE = 2**24
"""Limit of one size: a vocabulary, a width, a context. The largest published is a context of 10,485,760 (Llama 4 Scout)."""
MAX_ROUNDS, MAX_THREADS, MAX_BATCH = 100_000, max(64, 4 * (os.cpu_count() or 1)), 4096
"""Limits of a measurement: rounds, threads of a runtime, concurrent sequences or clients."""
MAX_LAYERS = 4096
"""Blocks in a stack; the deepest published model has 1,000 (DeepNet)."""
MAX_CONSTANT = 2**27
"""Elements of a table that is computed from a spec, not stored: positions times channels."""
MAX_NODES = 100_000
"""Nodes of a spec with all repetitions expanded; the deepest published models have a few thousand."""
MAX_DIMENSIONS = 64
"""Dimensions of a stored tensor: numpy's own limit."""
