"""Quantization methods: each file defines `class Method(job.Method)`, and is found by its name."""
