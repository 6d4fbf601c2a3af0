"""`web`: a folder for transformers.js, in browsers (WebAssembly or WebGPU) and under Node.

transformers.js looks for `onnx/model<suffix>.onnx`, whose suffix encodes the precision, with weights in `<that name>_data`, and
reads the number of data files from config.json.
"""

from __future__ import annotations

from typing import Any

from edgeformer.errors import ExportError
from edgeformer.exporters.onnx.functions import PAIR
from edgeformer.exporters.onnx.targets import webgpu
from edgeformer.weights.formats import GROUP

SUFFIXES = {"fp32": "", "fp16": "_fp16", "q4": "_q4", "q4f16": "_q4f16", "q8": "_quantized"}
MODEL_TYPES = frozenset((
    # decoders
    "apertus", "arcee", "bloom", "codegen", "cohere", "cohere2", "exaone", "falcon", "gemma", "gemma2",
    "gemma3_text", "glm", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "granite", "helium", "llama",
    "ministral", "mistral", "mobilellm", "mpt", "olmo", "olmo2", "olmo3", "openelm", "opt", "phi", "phi3",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
    # encoders
    "albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "esm",
    "eurobert", "modernbert", "mpnet", "nomic_bert", "roberta", "roformer", "xlm-roberta",
    # encoder-decoders
    "bart", "longt5", "m2m_100", "marian", "mbart", "mt5", "t5",
))  # fmt: skip
"""Text model types of transformers.js's registry (4.3); it runs no other."""
MISSING = ("AlbertForTokenClassification", "ModernBertForQuestionAnswering")
"""Classes of these model types that transformers.js lacks."""
DTYPES = {"fp32": "fp32", "fp16": "fp16", "q4": "q4", "q4f16": "q4f16", "q8": "q8"}


class Target(webgpu.Target):
    """The operators of the target webgpu, which onnxruntime-web's WebAssembly provider supports, too."""

    model_types = MODEL_TYPES

    def quantized_take(self, codes, scales, ids, format):
        """Rows of bytes, unpacked by arithmetic: onnxruntime-web's WebAssembly build has no GatherBlockQuantized."""
        rows, steps = self.take(codes, ids), self.take(scales, ids)
        grouped = self.reshape(self.unpacked(rows, scales.dtype, format), (0, 0, scales.dims[-1], GROUP))
        return self.reshape(grouped * self.expand_dims(steps, steps.ndim), (0, 0, scales.dims[-1] * GROUP))

    @classmethod
    def files(cls, precision: str) -> tuple[str, str]:
        """The ONNX file's path in the folder, and the name of its data file.

        Raises:
            ExportError: transformers.js has no name for the precision.
        """
        if precision not in SUFFIXES:
            raise ExportError(
                f"transformers.js doesn't support the precision {precision}; use one of {', '.join(SUFFIXES)}"
            )
        name = f"model{SUFFIXES[precision]}.onnx"
        return f"onnx/{name}", f"{name}_data"

    @classmethod
    def pair_files(cls, precision: str) -> tuple[tuple[str, str], tuple[str, str]]:
        """The encoder's ONNX file and data file, and the merged decoder's."""
        model, data = cls.files(precision)
        encoder, decoder = ((model.replace("/model", f"/{n}"), data.replace("model", n, 1)) for n in PAIR)
        return encoder, decoder

    @classmethod
    def config(cls, config: dict[str, Any], precisions: list[str], *, pair: bool = False) -> dict[str, Any]:
        """config.json with transformers.js's settings: each graph's number of data files, and the default precision.

        Raises:
            ExportError: transformers.js has no class for the model's head.
        """
        named = config.get("architectures")
        lacking = next((name for name in MISSING if isinstance(named, list) and name in named), None)
        if lacking is not None:
            raise ExportError(
                f"transformers.js has no class {lacking}; --without-head exports the encoder alone, --target cpu all of it"
            )
        graphs = [n for p in precisions for n, _ in (cls.pair_files(p) if pair else [cls.files(p)])]
        files = [name.rsplit("/", 1)[-1] for name in graphs]
        told = {"use_external_data_format": dict.fromkeys(files, 1), "dtype": DTYPES[precisions[0]]}
        # transformers.js expects keys and values in one tensor wherever a config says multi_query
        kept = {key: value for key, value in config.items() if key != "multi_query"}
        return {**kept, "transformers.js_config": told}
