"""Verification of artefacts against their original: reference logits, parity checks, weights, chat, and quality on text."""
