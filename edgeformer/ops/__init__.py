"""The op vocabulary (`primitives`, `fused`), and the non-layer parts of forward passes and generation: `step`, `sampling`, and
the load-balancing loss for experts."""

from edgeformer.ops.fused import MASKED, Bias, Heads, Ops, Rotary

__all__ = ["MASKED", "Bias", "Heads", "Ops", "Rotary"]
