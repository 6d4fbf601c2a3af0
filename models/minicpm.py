"""MiniCPM 1B and 2B (Hu et al. 2024, arXiv 2404.06395): Llama with multipliers that depend on depth and width.

transformers has no class for it: the published code's formula is the reference (h · scale_depth / √layers in each residual,
logits of h / (width / dim_model_base)).
"""

from __future__ import annotations

from typing import Any

from edgeformer.layers.block import Block
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.models._attention import rotary_attention
from edgeformer.models._config import HfConfig
from edgeformer.models._family import Family
from edgeformer.models._inverse import block_of, llama_config, model_of, solved
from edgeformer.models.llama import IGNORED, NAMES, PREFIXES, TIED, Fields, decoder, gated
from edgeformer.spec import Model

__all__ = ["IGNORED", "NAMES", "PREFIXES", "TIED", "config", "spec"]


def spec(config: HfConfig) -> Decoder:
    """A MiniCPM decoder."""
    norm = RMSNorm(eps=config.number("rms_norm_eps", 1e-6))
    head_dim = config.size("hidden_size") // config.size("num_attention_heads", 32)  # the configs have no key for it
    attention, context = rotary_attention(config, 32, 2048, head_dim=head_dim)
    residual_scale, scales = multipliers(config)
    count = config.layers("num_hidden_layers", 32)
    config.expect(mup_denominator=count, num_experts=0)
    block = Block(attention=attention, ffn=gated(config), norm=norm, residual_scale=residual_scale)
    return decoder(config, [block] * count, norm, context, tied=True, **scales)


def multipliers(
    config: HfConfig, *, embed: float = 1.0, depth: float | None = None, base: int | None = None
) -> tuple[float, Fields]:
    """MiniCPM's multipliers: of the residual (scale_depth / √layers), and the decoder's (scale_emb, dim_model_base / width).

    `embed`, `depth` and `base` are the family's defaults of these keys; None for depth or base means a multiplier of 1."""
    width, count = config.size("hidden_size"), config.layers("num_hidden_layers", 32)
    scale_depth = config.optional_number("scale_depth", depth)
    return 1.0 if scale_depth is None else scale_depth / count**0.5, {
        "embed_scale": config.number("scale_emb", embed),
        "logit_scale": (config.optional_size("dim_model_base", base) or width) / width,
    }


def config(spec: Model) -> dict[str, Any]:
    """The config.json of a spec.

    Raises:
        Unmapped: the spec is of another kind of model.
    """
    shape = llama_config(spec, "minicpm", "MiniCPMForCausalLM") | multipliers_config(model_of(spec, Decoder))
    return {key: value for key, value in shape.items() if key != "head_dim"}


def multipliers_config(spec: Decoder) -> dict[str, Any]:
    """The inverse of `multipliers`."""
    scale, count = block_of(spec, Block).residual_scale, len(spec.blocks)
    depth = None if scale == 1 else solved(lambda x: x / count**0.5, scale, scale * count**0.5)
    base = None if spec.logit_scale == 1 else round(spec.logit_scale * spec.width)
    return {"scale_emb": spec.embed_scale, "scale_depth": depth, "dim_model_base": base}


FAMILY = Family(spec, NAMES, config=config, prefixes=PREFIXES, ignored=IGNORED, tied=TIED, in_transformers=False)
