"""One file per kind of layer; the file's name is the kind. `serialization.from_json` finds them here."""
