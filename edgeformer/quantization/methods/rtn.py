"""Round to nearest: bit-identical to llama.cpp's own Q4_0 and Q8_0."""

from __future__ import annotations

from edgeformer.quantization import job
from edgeformer.weights.formats import nearest, quantize


class Method(job.Method):
    """Needs no data and no search."""

    rounding = staticmethod(nearest)

    def run(self, job):
        weights = job.loaded.require_weights()
        for name, format in job.formats.items():
            if name not in job.partial.done:
                yield {name: quantize(weights[name], format, self.rounding, name=name)}
