"""Remarks on a spec, one file per target: `TARGET`, its name for people, and `remarks(spec)`."""
