"""Hugging Face export: checkpoint folders that transformers loads."""
