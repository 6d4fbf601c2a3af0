"""GGUF export: a single file for llama.cpp, tokenizer included."""
