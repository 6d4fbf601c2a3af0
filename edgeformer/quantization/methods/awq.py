"""AWQ (Lin et al. 2023, arXiv 2306.00978): weight channels with large inputs are scaled up before rounding, and the inverse scale
is folded into the producer of those inputs, so that the model's function is unchanged. `Layer.folds` declares where.

Codes then come from a scale search weighted by the magnitude of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeformer.quantization import job
from edgeformer.quantization.calibration import Calibration
from edgeformer.quantization.folding import Site, sites
from edgeformer.weights.formats import Format, dequantize, quantize
from edgeformer.weights.scales import by_channel, searched

_EXPONENTS = np.linspace(0, 1, 11)
"""s = (mean square input) ^ (exponent / 2); 0 leaves a site unchanged."""


class Method(job.Method):
    """Needs text. Option `powers_of_two`: use scales that fold bit-exactly; others fold up to float32 rounding."""

    calibrated = True

    def changed(self, loaded):
        return {name for site in sites(loaded.spec) for name in site.source if name not in _weights_of(site)}

    def run(self, job):
        weights, formats, done = job.loaded.require_weights(), job.formats, job.partial.done
        moved = self.changed(job.loaded)
        if done >= formats.keys() | moved:
            return
        calibration = Calibration(job.loaded, job.text())
        exact = bool(job.options.get("powers_of_two"))
        found = sites(job.loaded.spec)
        for path, block in calibration.blocks():
            mine = [n for n in formats if n.startswith(path + ".")]
            if done.issuperset([*mine, *(n for n in moved if n.startswith(path + "."))]):
                continue
            job.report(f"block {path.split('.')[1]}")
            below = {n: n.removeprefix(path + ".").removesuffix(".weight") for n in mine}
            moments = calibration.second_moments(block, list(below.values()), diagonals=True)
            state = _State(
                weights,
                {n: moments[p].numpy().astype(np.float64) for n, p in below.items() if p in moments},
            )
            del moments
            for site in found:
                if site.layer.startswith(path) and _usable(site, formats, state):
                    _fold(site, state, formats, exact)
            plain = {name: tensor for name, tensor in state.tensors.items() if name not in formats}
            yield {
                name: state.quantized(name, formats[name]) for name in mine
            } | plain  # one block's scales depend on each other, so they are written together
        for name in formats:
            if name not in done and not name.startswith("layers."):
                importance = None
                if name == "head.weight" or (name == "embed.weight" and job.loaded.spec.head_is_embedding):
                    importance = calibration.head_second_moments().diagonal().numpy()
                rounding = searched if importance is None else by_channel(importance)
                yield {name: quantize(weights[name], formats[name], rounding, name=name)}


class _State:
    """A block's tensors with the folds so far, and the second moments of each linear map's inputs (diagonals for a stack)."""

    def __init__(self, weights: Mapping[str, np.ndarray], moments: dict[str, np.ndarray]):
        self.weights, self.moments = weights, moments
        self.tensors: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            return np.asarray(self.weights[name]).astype(np.float32)
        return self.tensors[name]

    def quantized(self, name: str, format: Format) -> job.Quantized:
        weight, moments = self[name], self.moments.get(name)
        if moments is not None and weight.ndim == 3:
            made = [
                quantize(w, format, by_channel(d) if d.any() else searched, name=name)
                for w, d in zip(weight, moments, strict=True)
            ]
            return np.stack([codes for codes, _ in made]), np.stack([scales for _, scales in made])
        rounding = by_channel(moments.diagonal()) if moments is not None else searched
        return quantize(weight, format, rounding, name=name)


def _weights_of(site: Site) -> set[str]:
    return {name for name in site.source if name.endswith(".weight") and site.linear}


def _usable(site: Site, formats: dict[str, Format], state: _State) -> bool:
    quantized = all(name in formats and name in state.moments for name in site.consumers)
    return quantized and (not site.linear or _weights_of(site) <= formats.keys())


def _fold(site: Site, state: _State, formats: dict[str, Format], exact: bool) -> None:
    """Choose the scale with the least rounding error in the consumers' outputs, and fold it."""
    size = site.reduced(np.sqrt(np.maximum(state.moments[site.consumers[0]].diagonal(), 1e-12)))
    best, best_loss = None, np.inf
    for exponent in _EXPONENTS:
        scale = size**exponent
        scale = scale / np.sqrt(scale.max() * scale.min())
        if exact:
            scale = 2.0 ** np.round(np.log2(scale))
        scale = scale.astype(np.float32)
        loss = sum(_loss(state, name, formats[name], site.spread(scale)) for name in site.consumers)
        if loss < best_loss:
            best, best_loss = scale, loss
    assert best is not None
    for name, tensor in site.divided({name: state[name] for name in site.source}, best).items():
        state.tensors[name] = tensor.astype(np.float32)
    spread = site.spread(best)
    for name in site.consumers:
        state.tensors[name] = state[name] * spread
        state.moments[name] = state.moments[name] / np.outer(spread, spread)


def _loss(state: _State, name: str, format: Format, scale: np.ndarray) -> float:
    """Mean squared error of a linear map's outputs if its weight is rounded with its columns scaled."""
    weight, moments = state[name], state.moments[name]
    rounding = by_channel(moments.diagonal() / np.square(scale, dtype=np.float64))
    rounded = dequantize(*quantize(weight * scale, format, rounding, name=name), format) / scale
    change = rounded - weight
    return float(np.einsum("ok,ok->", change @ moments.astype(np.float32), change))
