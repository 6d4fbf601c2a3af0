"""Base classes of spec nodes: data, layers, norms, position schemes, models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from edgeformer.errors import SpecError
from edgeformer.spec.declarations import Declaration, Fold, Leaf, SharedKV
from edgeformer.spec.sizes import Sizes
from edgeformer.spec.task import Task

if TYPE_CHECKING:
    from edgeformer.ops import Ops
    from edgeformer.ops.handle import LayerHandle
    from edgeformer.ops.tensor import T, Tensor


@dataclass(frozen=True, kw_only=True)
class Node:
    """Serialisable data in the spec tree. Subclasses set `kind` to the name of their file."""

    kind: ClassVar[str]

    resizes: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Sizes` that `resized` supports."""

    def resized(self, sizes: Sizes, width: int) -> Self:
        """This node with other sizes, in a model whose old width is `width`; its child nodes are already resized."""
        return self

    def require_positive(self, **fields: float | None) -> None:
        """Raise `SpecError` unless these fields are positive or None."""
        for name, value in fields.items():
            self.require(value is None or value > 0, f"{name} must be positive, got {value}")

    def require(self, rule: bool, message: str) -> None:
        """Raise `SpecError` with this node's kind unless `rule` holds."""
        if not rule:
            raise SpecError(f"{self.kind}: {message}")


@dataclass(frozen=True, kw_only=True)
class Layer(Node):
    """A node with parameters and a computation."""

    same_input: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of `Linear` or `Stacked` parameters that `apply` calls with the same input: a back end may pack each group of the
    former into one matrix."""

    reads: ClassVar[tuple[str, ...]] = ()
    """The `Linear` parameters that `apply` calls with its input, if nothing else uses that input."""

    def params(self, width: int) -> dict[str, Declaration]:
        """Parameter name -> declaration, for input vectors of `width`."""
        return {}

    def folds(self) -> tuple[Fold, ...]:
        """Places where channels can be rescaled (used by AWQ quantization)."""
        return ()

    def cache(self) -> dict[str, tuple[int, int]]:
        """Tensors cached per token: name -> (heads, dim); their shape is `[B, heads, S, dim]`."""
        return {}

    def cache_window(self) -> int | None:
        """Number of latest positions that a step still reads from the cache, its own included; None if it may read all."""
        return None

    def once(self) -> dict[str, tuple[int, int]]:
        """Tensors computed once from the encoder's output: name -> (heads, dim)."""
        return {}

    def per_step(self) -> tuple[Node, ...]:
        """Nodes the stack computes once per forward pass, shared by all layers that name an equal node: position schemes (layers
        called with the step) and masks. `apply` finds the results in `step.tables`, by node."""
        return ()

    def publishes(self) -> SharedKV | None:
        """The K/V that `apply` puts into `step.shared`."""
        return None

    def borrows(self) -> SharedKV | None:
        """The K/V that `apply` takes from `step.shared`."""
        return None

    def passes(self, child: str) -> int:
        """How many times one forward pass runs the child `child` (e.g. `layers.3`)."""
        return 1

    def ffn_width(self) -> int | None:
        """The hidden width of a feed-forward network; None for other layers."""
        return None

    def flops_per_key(self) -> int:
        """FLOPs of one query's score and weighted value per visible key (a multiply-add counts as two); 0 for layers that aren't
        attention."""
        return 0

    def keys_seen(self, position: int, length: int) -> int:
        """For attention layers: number of keys visible to the query at `position` in a sequence of `length` tokens."""
        return length

    def apply(self, ops: Ops, p: LayerHandle, *inputs: object) -> Any:
        """The layer's computation. `p` holds the back end's object for each declaration."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Position(Layer):
    """A position scheme for attention: a rotation of queries and keys, or a bias on scores."""

    def require_heads(self, owner: Node, heads: int, head_dim: int) -> None:
        """Raise `SpecError` unless the scheme fits attention with `heads` query heads of `head_dim` channels."""

    def for_heads(self, heads: int, head_dim: int, old_head_dim: int) -> Self:
        """The scheme for attention of other sizes."""
        return self


@dataclass(frozen=True, kw_only=True)
class Norm(Layer):
    """A layer that normalises the last axis."""

    def add(self, ops: Ops, p: LayerHandle, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """`(x + d, norm(x + d))`: residual addition and norm in one step."""
        raise NotImplementedError

    over_heads: ClassVar[bool] = False
    """Whether, as a norm of queries or keys, its parameters cover all heads (`on_heads`) instead of one."""

    def on_heads(self, ops: Ops, p: LayerHandle, x: Tensor, heads: int, dim: int) -> Tensor:
        """Normalise queries or keys [B, T, heads · dim]; only for norms with `over_heads`."""
        raise NotImplementedError

    def divided(self, tensors: dict[str, T], scale: T) -> dict[str, T]:
        """Parameters that divide the norm's output by `scale`, one number per channel; for norms linear in their parameters."""
        return {name: x / scale for name, x in tensors.items()}


@dataclass(frozen=True, kw_only=True)
class Init(Node):
    """Initialisation of a new model: normal with `std`; residual projections optionally scaled by 1/sqrt(2 · blocks).

    `scale_residual` is GPT-2's rule (Radford et al. 2019, section 2.3).
    """

    kind: ClassVar[str] = "init"
    std: float = 0.02
    scale_residual: bool = False

    def deviation(self, path: str, leaf: Leaf, depth: int) -> float:
        """The standard deviation of a weight in a model of `depth` blocks."""
        residual = self.scale_residual and getattr(leaf, "residual", False)
        return self.std / (2 * depth) ** 0.5 if residual else self.std


@dataclass(frozen=True)
class Input:
    """An integer input of a model's program: name and symbolic shape, e.g. `("batch_size", "sequence_length")`."""

    name: str
    shape: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Model(Layer):
    """The root of a spec."""

    task: ClassVar[Task]
    counts_padding: bool = False
    """Whether positions count all slots including padding (as in BERT), instead of real tokens only."""
    vocab: int
    width: int
    context: int
    init: Init = Init()

    @property
    def prefixed(self) -> bool:
        """Whether a prefix of the sequence is visible to all tokens (prefix LM), so that a step needs `Step.prefix`."""
        return False

    @property
    def head_is_embedding(self) -> bool:
        """Whether the head is the transposed embedding (tied embeddings)."""
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
