"""Runs llama.cpp's own converter on a transformers folder, without a tokenizer: `python gguf_converter.py LLAMA_CPP FOLDER FILE`.

LLAMA_CPP is a folder with convert_hf_to_gguf.py and what it imports. The converter wants a tokenizer of a kind that it knows by a
hash of its ids; a tiny model has none, so the vocabulary is left out.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any


def without_vocabulary(llama_cpp: Path) -> None:
    """Make the converter write no vocabulary, of any architecture."""
    sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
    import conversion  # type: ignore[import-not-found]

    known = conversion.get_model_class

    def model_class(*arguments: Any, **options: Any) -> Any:
        found = known(*arguments, **options)

        def no_vocabulary(self: Any) -> None:
            self.gguf_writer.add_tokenizer_model("no_vocab")
            self.gguf_writer.add_token_type_count(self.hparams.get("type_vocab_size", 1))

        found.set_vocab = no_vocabulary
        return found

    conversion.get_model_class = model_class


if __name__ == "__main__":
    where, folder, file = map(Path, sys.argv[1:])
    without_vocabulary(where)
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outfile", str(file), "--outtype", "f32"]
    runpy.run_path(str(where / "convert_hf_to_gguf.py"), run_name="__main__")
