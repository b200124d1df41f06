"""Recurrent cells on parameters of one array a gate."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CellName: TypeAlias = Literal["gru", "lstm", "vanilla"]
Gates: TypeAlias = Sequence[Float[Array, "hidden batch"]]
State: TypeAlias = tuple[Float[Array, "hidden batch"], ...]
# From what the gates get of the input and of the state, and the state, to the next one. Its first array is the output.
Step: TypeAlias = Callable[[Gates, Gates, State], State]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    Attributes:
      gates: names of the gates.
      states: how many arrays a state has.
      step: the next state.
    """

    gates: tuple[str, ...]
    states: int
    step: Step


def _gru(x: Gates, h: Gates, state: State) -> State:
    """Cho et al. 2014 (arXiv:1406.1078), with the reset gate after the product, as in cuDNN and flax."""
    (before,) = state
    reset, update = jax.nn.sigmoid(x[0] + h[0]), jax.nn.sigmoid(x[1] + h[1])
    new = jnp.tanh(x[2] + reset * h[2])
    return (new + update * (before - new),)


def _lstm(x: Gates, h: Gates, state: State) -> State:
    """Hochreiter & Schmidhuber 1997, with a forget gate that is open at the start."""
    _, memory = state
    forget, write, new, read = (a + b for a, b in zip(x, h, strict=True))
    memory = jax.nn.sigmoid(forget + 1.0) * memory + jax.nn.sigmoid(write) * jnp.tanh(new)
    return jax.nn.sigmoid(read) * jnp.tanh(memory), memory


def _vanilla(x: Gates, h: Gates, state: State) -> State:
    del state
    return (jnp.tanh(x[0] + h[0]),)


CELLS: dict[CellName, Cell] = {
    "gru": Cell(("reset", "update", "new"), 1, _gru),
    "lstm": Cell(("forget", "write", "new", "read"), 2, _lstm),
    "vanilla": Cell(("new",), 1, _vanilla),
}
