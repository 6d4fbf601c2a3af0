"""One file per kind of layer; the file's name is the kind. `spec.from_json` finds them here."""
