"""The op vocabulary (`primitives`, `fused`), and what a forward pass and generation are made of besides layers: `step`,
`sampling`, and the loss that balances experts."""

from edgeformer.ops.fused import MASKED, Bias, Heads, Ops, Rotary

__all__ = ["MASKED", "Bias", "Heads", "Ops", "Rotary"]
