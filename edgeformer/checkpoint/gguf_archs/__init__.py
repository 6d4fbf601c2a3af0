"""llama.cpp's architectures, a file each, named as llama.cpp names them: which specs they hold, and the way out and back. See
`_common.Architecture`."""
