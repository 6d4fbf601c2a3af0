"""Read untrusted files, and write files without losing data."""
