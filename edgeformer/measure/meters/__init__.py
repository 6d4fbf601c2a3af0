"""Energy counters, one file each: `open_meter()` returns a meter, or None if the machine has no readable counter."""
