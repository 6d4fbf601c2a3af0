"""Peak rates, one file per device: `rates(threads, sizes)` measures them, or returns None if there is no such device."""
