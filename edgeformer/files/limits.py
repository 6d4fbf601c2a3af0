"""How large what a file announces may be. Above every model that is known, and below what a machine can't hold."""

import os

MAX_SIZE = 2**24
"""Of one size: a vocabulary, a width, a context. The largest published is a context of 10,485,760 (Llama 4 Scout)."""
MAX_ROUNDS, MAX_THREADS, MAX_BATCH = 100_000, max(64, 4 * (os.cpu_count() or 1)), 4096
"""Of a measurement: its rounds, the threads of a runtime, sequences or clients at once."""
MAX_LAYERS = 4096
"""Blocks of a stack; the deepest published has 1,000 (DeepNet)."""
MAX_CONSTANT = 2**27
"""Numbers in a table that is computed from a spec, not stored: positions times channels."""
MAX_NODES = 100_000
"""Nodes of a spec with all repetitions written out; the deepest published models have some thousands."""
