"""One file per kind of spec node; the file name is the kind. `serialization.from_json` looks them up here."""
