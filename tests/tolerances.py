"""Every tolerance of the suite, in one table: max |difference| between float32 results of the same maths."""

FAMILY = 1e-4  # logits of tiny random models (|logits| up to about 10) against transformers
REAL_WEIGHTS = 1e-4  # stdlib-5m (|logits| up to 18) and MiniLM against transformers
OP = 2e-6  # one op against float64, relative to the largest magnitude
LAYER = 2e-5  # one layer or a two-block model against float64
LOSS = 1e-4  # 20 AdamW steps against transformers
GRADIENT = 1e-4  # of a loss, relative to the largest element of the tensor
KERNEL = 2e-6  # a native kernel against float64, relative
FP16 = 3e-2  # logits of an fp16 artefact against float32
