"""The architecture spec: a tree of frozen dataclasses, and what a layer declares.

A *node* is data (`Mask`, a RoPE scaling rule); a *layer* is a node that also owns parameters and computes. A variant is
a type, never a flag. The tree is its own serialisation: `to_json(node)` is `{"kind": ..., field: ...}` and `kind` is the
name of the file in `edgeformer/layers/` (or of an entry point in the group `edgeformer.layers`) that defines it.

A layer declares its parameters (`params`), what it remembers per token (`cache`) or once per sequence (`once`), and its
maths (`apply`) in the op vocabulary of `edgeformer.ops`. It never looks inside a declaration: what a `Linear` becomes
(a torch module, an ONNX MatMul, packed 4-bit codes) is the back end's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from edgeformer.errors import InputError, SpecError

# ---------------------------------------------------------------------------------------------------- declarations


@dataclass(frozen=True)
class Linear:
    """`y = x @ weight.T + bias`. Tensors: weight `[outputs, inputs]`, bias `[outputs]`.

    `residual` marks a projection that writes into the residual stream: GPT-2's initialisation scales it by depth.
    """

    inputs: int
    outputs: int
    bias: bool = False
    residual: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor suffix -> shape."""
        weight = {"weight": (self.outputs, self.inputs)}
        return weight | {"bias": (self.outputs,)} if self.bias else weight


@dataclass(frozen=True)
class Stacked:
    """`count` bias-free linear maps held in one tensor `[count, outputs, inputs]` (experts; per-head maps of MLA).

    `active`: how many of them multiply a token (the chosen experts); None for all.
    """

    count: int
    inputs: int
    outputs: int
    residual: bool = False
    active: int | None = None

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor suffix -> shape."""
        return {"weight": (self.count, self.outputs, self.inputs)}


@dataclass(frozen=True)
class Vector:
    """One tensor `[size]`, initialised with `fill` (1 for a norm's weight, 0 for its bias)."""

    size: int
    fill: float = 1.0

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor suffix -> shape."""
        return {"": (self.size,)}


@dataclass(frozen=True)
class Table:
    """A lookup table `[rows, width]`: an embedding. Its handle maps ids to rows; `as_linear` is the tied head."""

    rows: int
    width: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor suffix -> shape."""
        return {"weight": (self.rows, self.width)}


@dataclass(frozen=True)
class Const:
    """A numpy constant made at build time; not a weight, never saved."""

    make: Callable[[], Any]


@dataclass(frozen=True)
class Dropout:
    """Zeroes elements with probability `rate` while training; the identity everywhere else."""

    rate: float


@dataclass(frozen=True)
class Sub:
    """A child layer working on vectors of `width`."""

    layer: Layer
    width: int


Leaf = Linear | Stacked | Vector | Table
Declaration = Leaf | Const | Dropout | Sub | tuple[Sub, ...]


@dataclass(frozen=True)
class SharedKV:
    """Keys and values that a layer leaves to later ones of its stack as `name`: `kv_heads` heads of `head_dim` channels."""

    name: str
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Sizes:
    """Other sizes for a spec; None keeps a size, or lets it follow from those that are given."""

    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn: int | None = None
    vocab: int | None = None
    context: int | None = None
    tied: bool | None = None
    rope_theta: float | None = None


@dataclass(frozen=True)
class Fold:
    """A place where channels can be rescaled without changing what a layer computes: `source` (a norm, or a linear map) gives its
    outputs divided by s > 0, and the linear maps `consumers` take their inputs multiplied by s.

    Names are paths below the layer. Where each head's channels of the source are used by `repeat` heads of the consumer, s
    repeats so, in blocks of `block` channels.
    """

    source: str
    consumers: tuple[str, ...]
    repeat: int = 1
    block: int = 0


FFN_MULTIPLE = 64
"""What a feed-forward network's width is rounded to where it follows from another size."""


def whole(value: float, name: str, sizes: Sizes) -> int:
    """A size that follows from others, as a whole number.

    Raises:
        InputError: it isn't one.
    """
    if value < 1 or abs(value - round(value)) > 1e-9:
        given = ", ".join(f"{k} {v}" for k, v in asdict(sizes).items() if v is not None)
        raise InputError(
            f"{given}: {name} would be {value:g}, which is no whole number; give --{name.replace('_', '-')} too"
        )
    return round(value)


def resized_ffn(hidden: int, sizes: Sizes, width: int) -> int:
    """A network's hidden width: as given, or scaled with the model's width and rounded to `FFN_MULTIPLE`."""
    if sizes.ffn is not None or sizes.width is None or sizes.width == width:
        return sizes.ffn or hidden
    return max(round(hidden * sizes.width / width / FFN_MULTIPLE), 1) * FFN_MULTIPLE


# names that a torch or MLX module already uses for itself
RESERVED = frozenset(
    ("add", "apply", "buffers", "children", "eval", "forward", "items", "keys", "layer", "ops", "parameters", "path")
    + ("pop", "state", "train", "update", "values", "width")
)


# ------------------------------------------------------------------------------------------------------------ nodes


@dataclass(frozen=True, kw_only=True)
class Node:
    """Serialisable data in the spec tree. Subclasses set `kind` to the name of their file."""

    kind: ClassVar[str]

    resizes: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Sizes` that `resized` answers to."""

    def resized(self, sizes: Sizes, width: int) -> Self:
        """This node with other sizes, in a model that was `width` wide; nodes inside have been resized already."""
        return self

    def require_positive(self, *fields: str) -> None:
        """Raise `SpecError` unless these fields are positive."""
        for name in fields:
            self.require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")

    def require(self, rule: bool, message: str) -> None:
        """Raise `SpecError` with this node's kind unless `rule` holds."""
        if not rule:
            raise SpecError(f"{self.kind}: {message}")


@dataclass(frozen=True, kw_only=True)
class Layer(Node):
    """A node with parameters and maths."""

    same_input: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of `Linear` parameters that `apply` gives one and the same input: a back end may hold each as one matrix."""

    reads: ClassVar[tuple[str, ...]] = ()
    """The `Linear` parameters that `apply` gives its input, if nothing else in it uses that input."""

    def params(self, width: int) -> dict[str, Declaration]:
        """Parameter name -> declaration, for input vectors of `width`."""
        return {}

    def folds(self) -> tuple[Fold, ...]:
        """Where channels can be rescaled (quantization by AWQ uses it)."""
        return ()

    def cache(self) -> dict[str, tuple[int, int]]:
        """What is remembered per token: name -> (heads, dim); tensors are `[B, heads, S, dim]`."""
        return {}

    def once(self) -> dict[str, tuple[int, int]]:
        """What is computed once from the encoder's output: name -> (heads, dim)."""
        return {}

    def per_step(self) -> tuple[Node, ...]:
        """What the stack computes once per forward pass for all layers that name an equal node: position schemes (layers that are
        given the step) and masks. `apply` finds the results in `step.tables`, by node."""
        return ()

    def publishes(self) -> SharedKV | None:
        """The keys and values that `apply` puts into `step.shared`."""
        return None

    def borrows(self) -> SharedKV | None:
        """The keys and values that `apply` takes from `step.shared`."""
        return None

    def passes(self, child: str) -> int:
        """How often one forward pass runs the child `child` (`layers.3`)."""
        return 1

    def ffn_width(self) -> int | None:
        """The hidden width of a feed-forward network; None of other layers."""
        return None

    def flops_per_key(self) -> int:
        """Operations of one query's score and weighted value, for each key that it sees (a multiply and an add are two); 0 of a
        layer that doesn't attend."""
        return 0

    def keys_seen(self, position: int, length: int) -> int:
        """How many keys the query at `position` sees in a sequence of `length` tokens, of a layer that attends."""
        return length

    def apply(self, ops: Any, p: Any, *inputs: Any) -> Any:
        """The layer's maths. `p` holds what each declaration became."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Position(Layer):
    """A position scheme that attention uses: a rotation of queries and keys, or a bias on scores."""

    def require_heads(self, owner: Node, heads: int, head_dim: int) -> None:
        """Raise `SpecError` unless the scheme suits attention of `heads` query heads of `head_dim` channels."""

    def for_heads(self, heads: int, head_dim: int, old_head_dim: int) -> Self:
        """The scheme for attention of other sizes."""
        return self


@dataclass(frozen=True, kw_only=True)
class Norm(Layer):
    """A layer that normalises the last axis."""

    def add(self, ops: Any, p: Any, x: Any, d: Any) -> tuple[Any, Any]:
        """`(x + d, normalised x + d)`: the residual addition and the norm as one step."""
        raise NotImplementedError

    over_heads: ClassVar[bool] = False
    """Whether, as a norm of queries or keys, it has parameters over all heads (`on_heads`) instead of one head's."""

    def on_heads(self, ops: Any, p: Any, x: Any, heads: int, dim: int) -> Any:
        """The norm of queries or keys [B, T, heads · dim], of those that go over all heads."""
        raise NotImplementedError

    def divided(self, tensors: dict[str, Any], scale: Any) -> dict[str, Any]:
        """Its vectors such that the output comes divided by `scale`, one number per channel: of a norm that is linear in them."""
        return {name: x / scale for name, x in tensors.items()}


@dataclass(frozen=True, kw_only=True)
class Init(Node):
    """Initialisation of a fresh model: normal with `std`; residual projections optionally by 1/sqrt(2 · blocks).

    `scale_residual` is GPT-2's rule (Radford et al. 2019, section 2.3).
    """

    kind: ClassVar[str] = "init"
    std: float = 0.02
    scale_residual: bool = False

    def deviation(self, path: str, leaf: Leaf, depth: int) -> float:
        """The standard deviation of a weight of a model of `depth` blocks."""
        residual = self.scale_residual and getattr(leaf, "residual", False)
        return self.std / (2 * depth) ** 0.5 if residual else self.std


@dataclass(frozen=True)
class Input:
    """An integer input of a program: name and symbolic shape, e.g. `("batch_size", "sequence_length")`."""

    name: str
    shape: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Model(Layer):
    """The root of a spec."""

    task: ClassVar[str]  # "text-generation" | "feature-extraction" | "text2text-generation"
    counts_padding: bool = False
    """Whether positions number slots, padding included, instead of real tokens (BERT does)."""
    vocab: int
    width: int
    context: int
    init: Init = Init()

    @property
    def prefixed(self) -> bool:
        """Whether the first tokens of a sequence are seen by all, so that a step needs their number (`Step.prefix`)."""
        return False

    @property
    def head_is_embedding(self) -> bool:
        """Whether the map to logits is the transposed embedding."""
        return False

    @property
    def embedding_width(self) -> int:
        """The width of the token embeddings, which may be narrower than the model."""
        return self.width

    def inputs(self) -> tuple[Input, ...]:
        """The integer inputs of the model's program, in order."""
        raise NotImplementedError

    def outputs(self) -> dict[str, tuple[str | int, ...]]:
        """The program's outputs besides the cache: name -> symbolic shape."""
        raise NotImplementedError

    def depth(self) -> int:
        """Number of blocks."""
        raise NotImplementedError


# ------------------------------------------------------------------------------------------------------------ walks


def children(name: str, declaration: Declaration) -> Iterator[tuple[str, Sub]]:
    """The `(name, Sub)` pairs below one parameter; a tuple's are named `name.0`, `name.1`, ..."""
    if isinstance(declaration, Sub):
        yield name, declaration
    elif isinstance(declaration, tuple):
        yield from ((f"{name}.{i}", sub) for i, sub in enumerate(declaration))


def layers(layer: Layer, width: int = 0, path: str = "") -> Iterator[tuple[str, Layer, int]]:
    """Every `(path, layer, width)` of the tree, parents first."""
    yield path, layer, width
    for name, declaration in layer.params(width).items():
        for child, sub in children(name, declaration):
            yield from layers(sub.layer, sub.width, f"{path}.{child}" if path else child)


def passes(layer: Layer, width: int = 0, times: int = 1) -> Iterator[tuple[Layer, int, int]]:
    """Every `(layer, width, times)` of the tree: how often one forward pass runs it, parents first."""
    yield layer, width, times
    for name, declaration in layer.params(width).items():
        for child, sub in children(name, declaration):
            yield from passes(sub.layer, sub.width, times * layer.passes(child))


def leaves(layer: Layer, width: int = 0) -> Iterator[tuple[str, Leaf]]:
    """Every `(path, declaration)` that owns tensors."""
    for path, node, node_width in layers(layer, width):
        for name, declaration in node.params(node_width).items():
            if isinstance(declaration, (Linear, Stacked, Vector, Table)):
                yield (f"{path}.{name}" if path else name), declaration


def tensor_name(path: str, suffix: str) -> str:
    """The canonical name of a leaf's tensor: `layers.0.attention.q` + `weight`; a Vector has no suffix."""
    return f"{path}.{suffix}" if suffix else path


def tensors(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Canonical tensor name -> shape, for the whole tree."""
    return {
        tensor_name(path, suffix): shape for path, leaf in leaves(layer) for suffix, shape in leaf.tensors().items()
    }


def check(model: Layer) -> None:
    """Check that every parameter name can be an attribute of a module.

    Raises:
        SpecError: naming the first parameter that can't.
    """
    for path, layer, width in layers(model):
        for name in layer.params(width):
            if not name.isidentifier() or name.startswith("_") or name in RESERVED:
                raise SpecError(f"{layer.kind} at {path or 'the root'}: {name!r} can't be a parameter's name")
