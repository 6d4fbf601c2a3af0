"""The runtime protocol, lookup of runtimes, checks of their inputs, and text generation on top of them."""
