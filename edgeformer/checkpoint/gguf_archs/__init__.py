"""llama.cpp's architectures, one file each, under llama.cpp's names: which specs they can hold, and the conversion both ways. See
`_common.Architecture`."""
