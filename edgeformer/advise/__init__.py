"""Advice before anything is built: what a spec costs on each target, and which formats and runtimes support it."""
