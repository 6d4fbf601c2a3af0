"""What the inverses of families share: config keys from a spec.

An inverse reads the parts that its family has keys for and checks nothing: `family_config` (exporters.hf.config) turns the config
into a spec again by the family's own reader, and compares. Where a part is of another kind than the family's, a stand-in of the
family's kind takes its place, so that the comparison names the difference instead of stopping at the first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

from edgeformer.layers.decoder import Decoder
from edgeformer.layers.encoder import Encoder
from edgeformer.layers.encoder_decoder import EncoderDecoder
from edgeformer.layers.glu import GLU
from edgeformer.layers.gqa import GQA
from edgeformer.layers.mask import Mask
from edgeformer.layers.moe import MoE
from edgeformer.layers.rms_norm import RMSNorm
from edgeformer.layers.rope import Rope
from edgeformer.layers.rope_dynamic import DynamicScaling
from edgeformer.models._rope import rope_config
from edgeformer.models._shape import OtherKind, Unmapped, hf_activation
from edgeformer.models._windows import FULL, SLIDING
from edgeformer.spec import Layer, Model, Node, layers
from edgeformer.spec.derive import rebuilt

Kind = TypeVar("Kind", bound=Node)
ModelKind = TypeVar("ModelKind", Decoder, Encoder, EncoderDecoder)
Whole = TypeVar("Whole", bound=Model)
Config = dict[str, Any]


def model_of(spec: Model, kind: type[ModelKind]) -> ModelKind:
    """The spec, which has to be of this kind.

    Raises:
        OtherKind: it is of another kind.
    """
    if not isinstance(spec, kind):
        raise OtherKind(f"it is of kind {spec.kind}, not {kind.kind}")
    return spec


def part(node: Node | None, kind: type[Kind], **stand_in: Any) -> Kind:
    """The node if it is of this kind (or of a kind of it); otherwise one with its fields of the same names, and `stand_in`'s."""
    if isinstance(node, kind):
        return node
    fields = {f.name for f in dataclasses.fields(kind) if f.init}
    held = {} if node is None else {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    return kind(**{**stand_in, **{name: value for name, value in held.items() if name in fields & stand_in.keys()}})


def child(block: Layer, name: str) -> Node | None:
    """A node that a block holds under this name, if it has one: kinds of blocks have `attention`, `ffn` and `norm` in common."""
    found = vars(block).get(name)
    return found if isinstance(found, Node) else None


def ffn_in(block: Layer) -> Node | None:
    """A block's feed-forward network."""
    return child(block, "ffn")


def block_of(spec: Decoder | Encoder, kind: type[Kind]) -> Kind:
    """The first block, as a layer of this kind."""
    block = spec.blocks[0]
    parts = {"attention": GQA(heads=1, kv_heads=1, head_dim=2), "ffn": GLU(hidden=1), "norm": RMSNorm()}
    return part(block, kind, **parts, dropout=0.0)


def attention_in(block: Layer) -> GQA:
    """A block's attention."""
    found = next((layer for _, layer, _ in layers(block, 1) if isinstance(layer, GQA)), None)
    other = child(block, "attention")
    count = vars(other).get("heads", 1) if other is not None else 1
    return found or GQA(heads=count, kv_heads=count, head_dim=2)


def attentions_in(spec: Decoder | Encoder) -> list[GQA]:
    """Each block's attention."""
    return [attention_in(block) for block in spec.blocks]


def gated_in(spec: Decoder | Encoder) -> GLU:
    """The first gated feed-forward network that is no expert."""
    networks = [ffn_in(block) for block in spec.blocks]
    found = next((ffn for ffn in networks if isinstance(ffn, GLU)), None)
    return found or part(networks[0], GLU, hidden=4 * spec.width, act="silu", bias=False)


def mixture_in(spec: Decoder) -> MoE:
    """The first mixture of experts."""
    found = next((ffn for ffn in map(ffn_in, spec.blocks) if isinstance(ffn, MoE)), None)
    return found or part(gated_in(spec), MoE, experts=2, chosen=1, hidden=4, act="silu")


def of_class(model_type: str, architecture: str) -> Config:
    """The keys that say which class reads the config."""
    return {"model_type": model_type, "architectures": [architecture]}


def sizes(spec: Decoder | Encoder) -> Config:
    """The whole model's keys in Llama's spelling."""
    out = {
        "hidden_size": spec.width,
        "num_hidden_layers": len(spec.blocks),
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.context,
        "initializer_range": spec.init.std,
    }
    return out | ({"tie_word_embeddings": spec.tied} if isinstance(spec, Decoder) else {})


def heads(a: GQA, *, dim: bool = True, groups: bool = True) -> Config:
    """Attention's keys in Llama's spelling; `dim` and `groups` say whether the family has head_dim and num_key_value_heads."""
    out: Config = {"num_attention_heads": a.heads, "attention_dropout": a.dropout}
    return out | ({"head_dim": a.head_dim} if dim else {}) | ({"num_key_value_heads": a.kv_heads} if groups else {})


def network(ffn: Any) -> Config:
    """The feed-forward network's keys in Llama's spelling: `hidden` and `act`."""
    return {"intermediate_size": ffn.hidden, "hidden_act": hf_activation(ffn.act)}


def epsilon(norm: Any, key: str = "rms_norm_eps") -> Config:
    """A norm's epsilon under this key."""
    return {key: getattr(norm, "eps", 1e-6)}


def rotary(rope: Node | None, head_dim: int, *, kind: type[Rope] = Rope, share: str | None = None) -> Config:
    """RoPE's keys; `share` is the family's key for the part of each head that is rotated."""
    found = part(rope, kind, dim=head_dim, theta=10_000.0, scaling=None)
    out = rope_config(found)
    if isinstance(found.scaling, DynamicScaling):  # transformers takes the original length from max_position_embeddings
        out["max_position_embeddings"] = found.scaling.original_context
    if share is not None:
        out[share] = solved(lambda x: int(head_dim * x), found.dim, found.dim / head_dim)
    return out


def listed_windows(spec: Decoder | Encoder) -> tuple[int | None, list[str]]:
    """The size of sliding windows (None where no layer has one), and each layer's kind as layer_types says it."""
    windows = [a.mask.window for a in attentions_in(spec)]
    return next((w for w in windows if w is not None), None), [FULL if w is None else SLIDING for w in windows]


def llama_config(spec: Model, model_type: str, architecture: str) -> Config:
    """What all of Llama's descendants with RMSNorm, whole rotated heads and gated networks write."""
    model = model_of(spec, Decoder)
    a = rotated_in(model)
    shape = (
        of_class(model_type, architecture) | sizes(model) | heads(a) | network(gated_in(model)) | epsilon(model.norm)
    )
    return shape | rotary(a.position, a.head_dim)


def rotated_in(spec: Decoder | Encoder) -> GQA:
    """The first attention that has RoPE, or else the first."""
    found = attentions_in(spec)
    return next((a for a in found if isinstance(a.position, Rope)), found[0])


def whole(value: float) -> float | int:
    """An int where the value is one: transformers refuses 256.0 for a key that it declares as an int."""
    return int(value) if float(value).is_integer() else value


def reciprocal(value: float) -> float:
    """1 / value.

    Raises:
        Unmapped: the value isn't positive, which no multiplier of a family is.
    """
    if not value > 0:
        raise Unmapped(f"a multiplier is {value}; it has to be positive")
    return 1 / value


def solved(forward: Callable[[float], Any], wanted: Any, guess: float) -> float:
    """The shortest decimal near `guess` from which a reader's formula gives exactly `wanted`; `guess` if none does."""
    if not math.isfinite(guess):
        return guess
    near = [float(f"{guess:.{digits}g}") for digits in range(1, 18)]
    for _ in range(4):
        near += [math.nextafter(near[-1], math.inf)]
    low = guess
    for _ in range(4):
        low = math.nextafter(low, -math.inf)
        near.append(low)
    for value in near:
        try:
            if forward(value) == wanted:
                return value
        except (ArithmeticError, ValueError):
            continue
    return guess


def effective(spec: Whole) -> Whole:
    """The spec without sliding windows as wide as the context, which have no effect."""
    if not isinstance(spec, (Decoder, Encoder)):
        return spec
    context = spec.context

    def widened(node: Node) -> Node:
        wide = isinstance(node, Mask) and node.window is not None and node.window >= context
        return dataclasses.replace(node, window=None) if wide else node

    return rebuilt(spec, widened)  # type: ignore[return-value]
