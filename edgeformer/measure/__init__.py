"""Benchmarks: one fresh process per row, interleaved rounds, every sample kept, outputs checked in the same run."""
