"""A scale search without data: of several scales for each group, the one whose rounded values are nearest in squares."""

from __future__ import annotations

from edgeformer.quantization.methods import rtn
from edgeformer.weights.scales import searched


class Method(rtn.Method):
    """Never further from a group's weights than rounding to nearest: that is one of the candidates."""

    rounding = staticmethod(searched)
