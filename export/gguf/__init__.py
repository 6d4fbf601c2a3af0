"""GGUF: one file for llama.cpp, tokenizer included."""
