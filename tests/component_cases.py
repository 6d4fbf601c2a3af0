"""A small model around every component: what `test_components.py` runs on every back end."""

from __future__ import annotations

from dataclasses import replace

from edgeformer.layers.additive_attention import AdditiveAttention
from edgeformer.layers.alibi import Alibi
from edgeformer.layers.block import Block
from edgeformer.layers.borrowed_kv import BorrowedKV
from edgeformer.layers.decoder import Decoder
from edgeformer.layers.deep_norm_init import DeepNormInit
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.heads_layer_norm import HeadsLayerNorm
from edgeformer.layers.identity_norm import IdentityNorm
from edgeformer.layers.layer_norm import LayerNorm
from edgeformer.layers.learned import Learned
from edgeformer.layers.mask import Mask
from edgeformer.layers.mla import MLA
from edgeformer.layers.mlm_head import MlmHead
from edgeformer.layers.mlp import MLP
from edgeformer.layers.moe import MoE
from edgeformer.layers.offset_rms_norm import OffsetRMSNorm
from edgeformer.layers.output_norm_block import OutputNormBlock
from edgeformer.layers.parallel_block import ParallelBlock
from edgeformer.layers.pooling import Pooling
from edgeformer.layers.post_norm_block import PostNormBlock
from edgeformer.layers.relative_bias import RelativeBias
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.layers.rope_2d import Rope2D
from edgeformer.layers.rope_dynamic import DynamicScaling
from edgeformer.layers.rope_interleaved import RopeInterleaved
from edgeformer.layers.rope_linear import LinearScaling
from edgeformer.layers.rope_llama3 import Llama3Scaling
from edgeformer.layers.rope_longrope import LongRopeScaling
from edgeformer.layers.rope_ntk import NtkScaling
from edgeformer.layers.rope_yarn import YarnScaling
from edgeformer.layers.sandwich_block import SandwichBlock
from edgeformer.layers.sharing_gqa import SharingGQA
from edgeformer.layers.shaw_attention import ShawAttention
from edgeformer.layers.sinusoidal import Sinusoidal
from edgeformer.layers.swish import Swish
from edgeformer.layers.whole_norm import WholeNorm

NORM, LN = RMSNorm(eps=1e-5), LayerNorm()
ROPE = Rope(dim=16)
ATTENTION = GQA(heads=4, kv_heads=2, head_dim=16, position=ROPE)
FFN = GLU(hidden=24)


def decoder(attention=ATTENTION, ffn=FFN, norm=NORM, kind=Block, blocks=None, **fields):
    """Two blocks of 32 channels, tied."""
    shape = {k: fields.pop(k) for k in ("shared_norm", "residual_scale", "attention_norm") if k in fields}
    made = blocks or (kind(attention=attention, ffn=ffn, norm=norm, **shape),) * 2
    return Decoder(vocab=31, width=32, context=64, blocks=made, norm=fields.pop("final", norm), **fields)


def scaled(scaling, **rest):
    """Rotary attention with a scaling."""
    return decoder(replace(ATTENTION, position=Rope(dim=16, theta=500.0, scaling=scaling), **rest))


MLA_LAYER = MLA(heads=4, nope=12, rope=8, v_dim=10, rank=16, position=Rope(dim=8), norm=NORM)
COMPONENTS = {
    # activations, plain networks
    **{
        f"activation-{act}": decoder(ffn=MLP(hidden=24, act=act))
        for act in ("relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh", "identity")
    },
    "activation-swish": decoder(ffn=MLP(hidden=24, act=Swish(beta=1.3))),
    "activation-swish-learned": decoder(ffn=GLU(hidden=24, act=Swish(learned=True))),
    "ffn-no-bias": decoder(ffn=MLP(hidden=40, bias=False)),
    # gated networks
    **{
        f"ffn-{name}": decoder(ffn=GLU(hidden=24, act=act))
        for name, act in {"glu": "sigmoid", "bilinear": "identity", "reglu": "relu", "geglu": "gelu", "swiglu": "silu"}.items()
    },
    "ffn-gated-bias": decoder(ffn=GLU(hidden=24, bias=True)),
    "ffn-width-per-layer": decoder(
        blocks=tuple(Block(attention=ATTENTION, ffn=GLU(hidden=n), norm=NORM) for n in (24, 40, 8))
    ),
    "moe": decoder(ffn=MoE(experts=4, chosen=2, hidden=20)),
    "moe-raw-weights": decoder(ffn=MoE(experts=5, chosen=3, hidden=8, renormalize=False, scale=1.5)),
    "moe-shared-grouped": decoder(
        ffn=MoE(experts=6, chosen=2, hidden=8, groups=3, chosen_groups=2, shared=GLU(hidden=16))
    ),
    # attention
    "mha": decoder(replace(ATTENTION, kv_heads=4)),
    "mqa": decoder(replace(ATTENTION, kv_heads=1)),
    "gqa": decoder(),
    "any-scale-biases": decoder(replace(ATTENTION, scale=0.3, bias=True, output_bias=True)),
    "qk-norm-per-head": decoder(replace(ATTENTION, qk_norm=NORM)),
    "qk-norm-whole": decoder(replace(ATTENTION, qk_norm=WholeNorm(norm=NORM))),
    "qk-norm-own-weights": decoder(replace(ATTENTION, qk_norm=HeadsLayerNorm(bias=True))),
    "clip": decoder(replace(ATTENTION, clip=0.5)),
    "clip-after-norm": decoder(replace(ATTENTION, clip=0.5, qk_norm=NORM)),
    "softcap": decoder(replace(ATTENTION, softcap=3.0)),
    "sinks": decoder(replace(ATTENTION, sinks=True)),
    "sinks-softcap": decoder(replace(ATTENTION, sinks=True, softcap=3.0)),
    "odd-head": decoder(replace(ATTENTION, head_dim=12, position=Rope(dim=12))),
    "mla": decoder(MLA_LAYER),
    "mla-query-latent": decoder(replace(MLA_LAYER, q_rank=12, bias=True, position=RopeInterleaved(dim=8))),
    "additive": decoder(AdditiveAttention(heads=4, head_dim=8)),
    "cross-layer-kv": decoder(
        blocks=(
            Block(attention=SharingGQA(heads=4, kv_heads=2, head_dim=16, position=ROPE, shares="a"), ffn=FFN, norm=NORM),
            Block(attention=BorrowedKV(heads=4, kv_heads=2, head_dim=16, position=ROPE, source="a"), ffn=FFN, norm=NORM),
        )
    ),
    # masks
    "window": decoder(replace(ATTENTION, mask=Mask(window=5))),
    "chunks": decoder(replace(ATTENTION, mask=Mask(chunk=6))),
    "window-in-chunks": decoder(replace(ATTENTION, mask=Mask(chunk=8, window=3))),
    "window-by-layer": decoder(
        blocks=tuple(Block(attention=replace(ATTENTION, mask=Mask(window=w)), ffn=FFN, norm=NORM) for w in (3, None))
    ),
    # positions
    "sinusoidal": decoder(replace(ATTENTION, position=None), positions=Sinusoidal(count=64)),
    "sinusoidal-halves": decoder(replace(ATTENTION, position=None), positions=Sinusoidal(count=64, interleaved=False)),
    "learned": decoder(replace(ATTENTION, position=None), positions=Learned(count=64, offset=2)),
    "shaw": decoder(ShawAttention(heads=4, head_dim=8, furthest=6)),
    "shaw-keys-only": decoder(ShawAttention(heads=4, head_dim=8, furthest=30, values=False, bias=True)),
    "t5-bias": decoder(replace(ATTENTION, position=RelativeBias(heads=4, buckets=8, furthest=12, bidirectional=False))),
    "alibi": decoder(replace(ATTENTION, position=Alibi(heads=4))),
    "alibi-odd-heads": decoder(replace(ATTENTION, heads=6, kv_heads=3, position=Alibi(heads=6))),
    "rope-partial": decoder(replace(ATTENTION, position=Rope(dim=8))),
    "rope-interleaved": decoder(replace(ATTENTION, position=RopeInterleaved(dim=16))),
    "rope-interleaved-partial": decoder(replace(ATTENTION, position=RopeInterleaved(dim=8))),
    "rope-linear": scaled(LinearScaling(factor=3.0)),
    "rope-ntk": scaled(NtkScaling(factor=3.0)),
    "rope-dynamic": scaled(DynamicScaling(factor=3.0, original_context=64)),
    "rope-yarn": scaled(YarnScaling(factor=3.0, original_context=16, temperature=1.1)),
    "rope-longrope": scaled(
        LongRopeScaling(short_factor=(1.0,) * 8, long_factor=(2.0,) * 8, original_context=64, temperature=1.1)
    ),
    "rope-llama3": scaled(Llama3Scaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16)),
    "nope": decoder(replace(ATTENTION, position=None)),
    "nope-by-layer": decoder(
        blocks=tuple(Block(attention=replace(ATTENTION, position=p), ffn=FFN, norm=NORM) for p in (ROPE, None))
    ),
    # norms, blocks, multipliers
    "norm-layer": decoder(norm=LN),
    "norm-layer-no-bias": decoder(norm=LayerNorm(bias=False)),
    "norm-no-parameters": decoder(norm=LayerNorm(weight=False, bias=False)),
    "norm-rms": decoder(norm=RMSNorm()),
    "norm-one-plus": decoder(norm=OffsetRMSNorm()),
    "norm-identity": decoder(attention_norm=IdentityNorm()),
    "block-pre": decoder(),
    "block-post": decoder(kind=PostNormBlock, norm=LN, final=None),
    "block-deep-norm": decoder(
        kind=PostNormBlock, norm=LN, final=None, residual_scale=DeepNormInit.alpha(2), init=DeepNormInit.of(2)
    ),
    "block-sandwich": decoder(kind=SandwichBlock),
    "block-output-norm": decoder(kind=OutputNormBlock),
    "block-parallel": decoder(kind=ParallelBlock, norm=LN),
    "block-parallel-one-norm": decoder(kind=ParallelBlock, norm=LN, shared_norm=True),
    "embedding-norm": decoder(embed_norm=LN),
    "embedding-projected": decoder(embed_width=20),
    "multipliers": decoder(residual_scale=0.4, embed_scale=3.0, logit_scale=0.2, tied=False, head_bias=True),
    "logit-softcap": decoder(logit_softcap=2.0),
}  # fmt: skip
"""Name -> a decoder."""


def encoder(attention=None, **fields):
    """Two blocks of 32 channels that see both ways."""
    attention = attention or replace(ATTENTION, mask=Mask(causal=False))
    block = Block(attention=attention, ffn=FFN, norm=NORM)
    return Encoder(vocab=31, width=32, context=64, blocks=fields.pop("blocks", (block,) * 2), norm=NORM, **fields)


ENCODERS = {
    "encoder": encoder(),
    "encoder-window": encoder(replace(ATTENTION, mask=Mask(causal=False, window=4))),
    "encoder-t5-bias": encoder(
        replace(ATTENTION, mask=Mask(causal=False), position=RelativeBias(heads=4, buckets=8, furthest=12))
    ),
    "encoder-shaw": encoder(ShawAttention(heads=4, head_dim=8, furthest=6, mask=Mask(causal=False))),
    "encoder-additive": encoder(AdditiveAttention(heads=4, head_dim=8, mask=Mask(causal=False))),
    "encoder-pooled-mlm": encoder(
        pooling=Pooling(), pooler=True, positions=Learned(count=64), mlm=MlmHead(width=32, norm=LN), token_types=2
    ),
    "encoder-counting-tokens": encoder(positions=Learned(count=64, offset=2), counts_padding=False),
    "shared-blocks": encoder(
        blocks=(Block(attention=replace(ATTENTION, mask=Mask(causal=False)), ffn=FFN, norm=NORM),), order=(0, 0, 0)
    ),
}
PREFIXED = {
    "prefix-mask": decoder(replace(ATTENTION, mask=Mask(prefix=True))),
    "rope-2d": decoder(replace(ATTENTION, mask=Mask(prefix=True), position=Rope2D(dim=16))),
}
