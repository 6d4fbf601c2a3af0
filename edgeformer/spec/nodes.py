"""Nodes of the spec tree: data, layers, norms, position schemes, models."""

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
    from edgeformer.ops.tensor import Tensor


@dataclass(frozen=True, kw_only=True)
class Node:
    """Serialisable data in the spec tree. Subclasses set `kind` to the name of their file."""

    kind: ClassVar[str]

    resizes: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Sizes` that `resized` answers to."""

    def resized(self, sizes: Sizes, width: int) -> Self:
        """This node with other sizes, in a model that was `width` wide; nodes inside have been resized already."""
        return self

    def require_positive(self, **fields: float | None) -> None:
        """Raise `SpecError` unless these fields are positive, or None."""
        for name, value in fields.items():
            self.require(value is None or value > 0, f"{name} must be positive, got {value}")

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

    def apply(self, ops: Ops, p: LayerHandle, *inputs: Any) -> Any:
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

    def add(self, ops: Ops, p: LayerHandle, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """`(x + d, normalised x + d)`: the residual addition and the norm as one step."""
        raise NotImplementedError

    over_heads: ClassVar[bool] = False
    """Whether, as a norm of queries or keys, it has parameters over all heads (`on_heads`) instead of one head's."""

    def on_heads(self, ops: Ops, p: LayerHandle, x: Tensor, heads: int, dim: int) -> Tensor:
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

    task: ClassVar[Task]
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
