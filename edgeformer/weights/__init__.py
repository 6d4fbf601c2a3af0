"""Where files store tensors, in which formats, and how canonical names map to them. Nothing is read before it is needed."""
