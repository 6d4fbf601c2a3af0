"""Counters of energy, one file each: `open_meter()` gives one, or None where the machine has none that we may read."""
