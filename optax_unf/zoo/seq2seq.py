"""The models of the zoo: a recurrent encoder reads a question, a recurrent decoder writes the answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from optax_unf.zoo.arithmetic import CHARACTERS, END, EQUALS
from optax_unf.zoo.cells import CELLS, CellName, State

Params = PyTree[Float[ArrayLike, "..."]]
Codes = Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
    """A sequence-to-sequence model (Sutskever et al. 2014, arXiv:1409.3215) of characters.

    The encoder's last state is the decoder's first. The decoder reads the characters that it has written, at first the
    equals sign. Parameters are `{cell: {"input" | "recurrent" | "bias": {gate: array}}}` for the cells `encoder` and
    `decoder`, and the layer `out`.

    Attributes:
      hidden: hidden units of each cell.
      cell: the kind of cell.

    Example:
      >>> model = Seq2Seq(hidden=4)
      >>> params = model.init(jax.random.key(0))
      >>> model.answer(params, jnp.zeros((2, 6), int), places=3).shape
      (2, 3)
    """

    hidden: int
    cell: CellName = "gru"

    def init(self, key: Array, scale: float | Float[Array, ""] = 1.0) -> Params:
        """Kernels with variance scale^2 / fan-in, zero biases."""
        characters, hidden = len(CHARACTERS), self.hidden
        kernel = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")

        def cell(key: Array) -> Params:
            keys = iter(jax.random.split(key, 2 * len(CELLS[self.cell].gates)))
            return {
                "input": {gate: scale * kernel(next(keys), (characters, hidden)) for gate in CELLS[self.cell].gates},
                "recurrent": {gate: scale * kernel(next(keys), (hidden, hidden)) for gate in CELLS[self.cell].gates},
                "bias": {gate: jnp.zeros(hidden) for gate in CELLS[self.cell].gates},
            }

        keys = jax.random.split(key, 3)
        return {
            "encoder": cell(keys[0]),
            "decoder": cell(keys[1]),
            "out": {"kernel": scale * kernel(keys[2], (hidden, characters)), "bias": jnp.zeros(characters)},
        }

    def loss(
        self, params: Params, asked: Int[Codes, "batch length"], answers: Int[Codes, "batch places"]
    ) -> Float[Array, ""]:
        """Mean cross-entropy in nats of the characters of the answers, their first end character included."""
        last = jnp.full_like(answers[:, 0], EQUALS)
        state, total, count = self._encoded(params, asked), jnp.zeros(()), jnp.zeros(())
        for truth in answers.T:
            state = self._next(params["decoder"], state, last)
            log_p = jax.nn.log_softmax(_logits(params, state), axis=0)
            is_counted = last != END
            total -= jnp.sum(jnp.where(is_counted, jnp.sum(log_p * _one_hot(truth), 0), 0.0))
            count += jnp.sum(is_counted)
            last = truth
        return total / count

    def answer(self, params: Params, asked: Int[Codes, "batch length"], places: int) -> Int[Array, "batch places"]:
        """The answers by greedy decoding; what stands after an end character has no meaning."""
        state, last = self._encoded(params, asked), jnp.full_like(asked[:, 0], EQUALS)
        written = []
        for _ in range(places):
            state = self._next(params["decoder"], state, last)
            last = jnp.argmax(_logits(params, state), axis=0)
            written.append(last)
        return jnp.stack(written, axis=1)

    def is_right(
        self, params: Params, asked: Int[Codes, "batch length"], answers: Int[Codes, "batch places"]
    ) -> Bool[Array, " batch"]:
        """Whether the whole answer, to its end character, is what greedy decoding gives."""
        is_after_end = jnp.cumsum(answers == END, axis=1) > 1
        return jnp.all((self.answer(params, asked, answers.shape[1]) == answers) | is_after_end, axis=1)

    def _encoded(self, params: Params, asked: Int[Codes, "batch length"]) -> State:
        state = (jnp.zeros((self.hidden, len(asked))),) * CELLS[self.cell].states
        for read in asked.T:
            state = self._next(params["encoder"], state, read)
        return state

    # The batch is the last axis, each gate has its products, and loops are unrolled: so one core trains three times as
    # fast as with rows of hidden units, joined gates and a scan.
    def _next(self, params: Params, state: State, read: Int[Codes, " batch"]) -> State:
        x = _one_hot(read)
        cell = CELLS[self.cell]
        inputs = [params["input"][gate].T @ x + params["bias"][gate][:, None] for gate in cell.gates]
        recurrent = [params["recurrent"][gate].T @ state[0] for gate in cell.gates]
        return cell.step(inputs, recurrent, state)


def _one_hot(read: Int[Codes, " batch"]) -> Float[Array, "characters batch"]:
    return jax.nn.one_hot(read, len(CHARACTERS), axis=0)


def _logits(params: Params, state: State) -> Float[Array, "characters batch"]:
    return params["out"]["kernel"].T @ state[0] + params["out"]["bias"][:, None]
