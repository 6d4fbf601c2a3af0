"""llama.cpp's architectures, a file each: which specs they can hold, their metadata, their tensor names, and the way back.

A file defines `NAMES` (canonical pattern -> GGUF name), `metadata(spec)` (without the architecture's prefix; raises `Unmapped`),
`config(reader)` (the Hugging Face config that says the same), and where llama.cpp rotates neighbouring channels, `INTERLEAVED`.
"""
