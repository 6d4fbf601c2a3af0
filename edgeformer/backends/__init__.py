"""Back ends: each implements the op vocabulary and turns declarations into its own handles."""
