"""Hugging Face checkpoints, as transformers reads them."""
