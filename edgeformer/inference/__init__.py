"""What a runtime is: its protocol, how one is found, what it may be given, and generation on top of it."""
