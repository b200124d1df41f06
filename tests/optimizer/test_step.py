"""A step outside of jit: one program, kept as long as it is of use."""

import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learned import AXES, SPEC, close, each_head, make, make_params, two_heads, weights_of

from optax_unf import make_spec, scale_by_unf, unf
from optax_unf.optimizer.update import _program, network_for


@pytest.fixture(autouse=True)
def programs():
    _program.cache_clear()
    yield _program
    _program.cache_clear()


@pytest.mark.slow
@each_head
def test_nothing_is_compiled_at_later_steps(head, programs):
    params, state, events = make_params(), make(head).init(make_params()), []

    def listen(name, *_, **__):
        events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for seed in (1, 2, 3):
            events.clear()
            # Made anew at each step, as optax.inject_hyperparams does.
            updates, state = unf(weights_of(head), spec=AXES).update(make_params(seed), state, params)
            params = optax.apply_updates(params, updates)
            assert (events == []) == (seed > 1)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert programs.cache_info().currsize == 1


@pytest.mark.slow
@two_heads
def test_a_step_is_the_same_in_and_out_of_jit(head):
    tx, params = make(head), make_params()
    state = tx.init(params)
    outside = tx.update(make_params(1), state, params)
    close(outside, jax.jit(tx.update)(make_params(1), state, params))
    with jax.disable_jit():
        close(outside, tx.update(make_params(1), state, params))
    types = jax.eval_shape(tx.update, make_params(1), state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(types, outside)


@pytest.mark.usefixtures("unchecked")
@two_heads
def test_numpy_arrays_and_numbers_are_leaves_too(head):
    tx, params, grads = make(head), make_params(), make_params(1)
    expected, _ = tx.update(grads, tx.init(params), params)
    params, grads = ({k: np.asarray(x) if x.ndim else float(x) for k, x in tree.items()} for tree in (params, grads))
    for update in (tx.update, jax.jit(tx.update)):
        close(update(grads, tx.init(params), params)[0], expected)


@pytest.mark.slow
def test_transformations_outside_of_jit():
    tx, params = make("deepsets"), make_params()
    grads = jax.tree.map(lambda *x: jnp.stack(x), *map(make_params, (1, 2)))
    many = jax.vmap(lambda g: tx.update(g, tx.init(params), params)[0])(grads)
    for n in range(2):
        alone, _ = tx.update(make_params(n + 1), tx.init(params), params)
        close(jax.tree.map(lambda x, n=n: x[n], many), alone)

    def norm(weights, transform=lambda f: f):
        tx = unf(weights, spec=SPEC)
        updates, _ = transform(tx.update)(make_params(1), tx.init(params), params)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(updates))

    close(jax.grad(norm)(weights_of("deepsets")), jax.grad(norm)(weights_of("deepsets"), jax.jit), 1e-4)


@two_heads
def test_inside_of_jit_a_step_is_part_of_the_program(head):
    tx, params = make(head), make_params()
    jaxpr = jax.make_jaxpr(tx.update)(make_params(1), tx.init(params), params)
    assert "name=_update" not in str(jaxpr)
    assert "name=call" not in str(jaxpr)


def test_spaces_that_differ_in_nothing_but_notes_share_a_program(programs):
    weights, params = weights_of("tied"), make_params()
    for axes in (AXES, dict(reversed(AXES.items())), make_spec(AXES, params)):
        tx = unf(weights, spec=axes)
        tx.update(make_params(1), tx.init(params), params)
    assert programs.cache_info().currsize == 1
    tx = unf(weights, spec=None)
    tx.update(make_params(1), tx.init(params), params)
    assert programs.cache_info().currsize == 2


def test_programs_are_not_kept_for_ever(programs):
    assert programs.cache_info().maxsize < 1000
    weights, params, grads = weights_of("deepsets"), make_params(), make_params(1)
    tx = scale_by_unf(weights, spec=AXES)
    state, client = tx.init(params), jax.devices()[0].client
    before = len(client.live_executables())
    tx.update(grads, state, params)
    program = weakref.ref(programs(network_for(weights.architecture, SPEC, None), None))
    assert programs.cache_info().currsize == 1
    assert len(client.live_executables()) > before

    programs.cache_clear()
    gc.collect()
    assert program() is None
    assert len(client.live_executables()) <= before
