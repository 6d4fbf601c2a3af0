"""What a device can do at most, one file per device: `rates(threads, sizes)` measures it, or gives None where there is none."""
