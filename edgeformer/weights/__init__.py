"""Where tensors lie in files, in which formats, and how canonical names reach them. Nothing is read before it is needed."""
