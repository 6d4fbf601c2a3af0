"""Weight quantization: reads a checkpoint, writes a quantized checkpoint. Each method is a file in `methods/`."""
