"""Quantization methods: each file defines `class Method(job.Method)` and is looked up by its name."""
