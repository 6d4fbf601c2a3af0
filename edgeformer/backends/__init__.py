"""Back ends: each implements the op vocabulary and turns parameter declarations into its own handles."""
