"""What users do with optax optimizers, done with this one: wrappers, masks, dtypes, transformations of the update."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learned import SPEC, close, descend, each_head, make, make_params, two_heads, weights_of

from optax_unf import Architecture, InitialScalars, init_weights, load_weights, scale_by_unf, unf

# Arguments and hyperparameters.


@two_heads
def test_unknown_arguments_are_ignored(head):
    params, grads, tx = make_params(), make_params(1), make(head)
    wrapped = [
        tx,
        optax.chain(optax.identity(), tx),
        optax.named_chain(("learned", tx), ("then", optax.identity())),
        optax.with_extra_args_support(tx),
    ]

    @jax.jit
    def updates(value):
        extra = [t.update(grads, t.init(params), params, value=value, unknown="x")[0] for t in wrapped]
        return tx.update(grads, tx.init(params), params)[0], extra

    plain, extra = updates(jnp.float32(1.0))
    for one in extra:
        chex.assert_trees_all_equal(one, plain)


@pytest.mark.parametrize(
    ("head", "kind"),
    [("none", "float"), ("none", "int"), ("none", "array"), ("none", "schedule"), ("full", "schedule")],
)
def test_the_factor_can_be_injected(head, kind):
    rate = {"float": 0.5, "int": 1, "array": jnp.float32(0.5), "schedule": optax.linear_schedule(0.5, 0.1, 2)}[kind]
    injected = optax.inject_hyperparams(unf)(weights_of(head), spec=SPEC, factor=rate)
    (params, state), (expected, _) = descend(injected), descend(make(head, factor=rate))
    close(params, expected)
    assert float(state.hyperparams["factor"]) == pytest.approx(float(rate(2) if callable(rate) else rate))


def test_an_injected_factor_changes_without_retracing():
    tx = optax.inject_hyperparams(unf)("mlp-fashion-mnist-sgdm", factor=1.0, accumulator_dtype="bfloat16")
    params, grads = make_params(), make_params(1)
    update = jax.jit(chex.assert_max_traces(tx.update, 1))
    state = tx.init(params)
    once, state = update(grads, state, params)
    chex.assert_trees_all_equal_dtypes(optax.tree.get(state, "mu")[0], jax.tree.map(jnp.bfloat16, params))
    state = tx.init(params)
    state.hyperparams["factor"] = jnp.float32(3.0)
    thrice, _ = update(grads, state, params)
    close(thrice, jax.tree.map(lambda x: 3 * x, once))
    chex.clear_trace_counter()


@two_heads
def test_a_constant_schedule_is_the_constant(head):
    schedule = optax.constant_schedule(0.3)
    chex.assert_trees_all_equal(descend(make(head, factor=schedule))[0], descend(make(head, factor=0.3))[0])


def test_the_count_stops_at_its_largest_value():
    tx, params = scale_by_unf(weights_of("deepsets")), make_params()
    last = jnp.asarray(np.iinfo(np.int32).max, jnp.int32)
    updates, state = jax.jit(tx.update)(params, tx.init(params)._replace(count=last), params)
    assert state.count == last
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))


# Accumulation over micro-batches.


@pytest.mark.promotes("optax's counts of steps are whole numbers")
@two_heads
def test_multi_steps_is_one_large_batch(head):
    tx, batches = make(head), [make_params(n) for n in range(1, 5)]
    large = jax.tree.map(lambda *x: sum(x) / 4, *batches)
    small = optax.MultiSteps(tx, every_k_schedule=4)
    params, state = make_params(), small.init(make_params())
    update = jax.jit(small.update)
    for n, grads in enumerate(batches):
        updates, state = update(grads, state, params)
        if n < 3:
            chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    params = optax.apply_updates(params, updates)
    expected, expected_state = descend(tx, steps=1, grads=large)
    close(params, expected)
    close(state.inner_opt_state, expected_state)


@pytest.mark.promotes("optax's counts of steps are whole numbers")
@two_heads
def test_apply_every_adds_up_the_updates(head):
    tx, every, params = make(head), optax.chain(make(head), optax.apply_every(3)), make_params()
    plain, many = jax.jit(tx.update), jax.jit(every.update)
    state, every_state = tx.init(params), every.init(params)
    total = jax.tree.map(jnp.zeros_like, params)
    for n in range(3):
        one, state = plain(make_params(n), state, params)
        total = jax.tree.map(jnp.add, total, one)
        held, every_state = many(make_params(n), every_state, params)
        expected = total if n == 2 else jax.tree.map(jnp.zeros_like, params)
        close(held, expected)


@pytest.mark.promotes("optax's counts of steps are whole numbers")
def test_apply_every_is_one_large_batch_where_the_update_is_linear():
    # Without momentum and network the sum of k updates is one update with the sum of the gradients.
    weights = init_weights(Architecture(head="none"), SPEC, jax.random.key(0), InitialScalars(gamma_0=1e-6))
    batches = [make_params(n) for n in (1, 2)]
    every = optax.chain(unf(weights), optax.apply_every(2))
    state = every.init(make_params())
    for grads in batches:
        updates, state = every.update(grads, state, make_params())
    once, _ = unf(weights).update(jax.tree.map(jnp.add, *batches), unf(weights).init(make_params()), make_params())
    close(updates, once)


# In chains and wrappers.


@two_heads
def test_transformations_before_and_after(head):
    params, grads, tx = make_params(), make_params(1), make(head)
    chained = optax.chain(optax.clip_by_global_norm(0.5), tx, optax.add_decayed_weights(-0.01), optax.scale(2.0))

    @jax.jit
    def both():
        clipped = jax.tree.map(lambda g: g * 0.5 / optax.tree.norm(grads), grads)
        step, _ = tx.update(clipped, tx.init(params), params)
        return (
            chained.update(grads, chained.init(params), params)[0],
            jax.tree.map(lambda u, p: 2 * (u - 0.01 * p), step, params),
        )

    close(*both())


@two_heads
def test_apply_if_finite_drops_a_step(head):
    tx = optax.apply_if_finite(make(head), max_consecutive_errors=2)
    params, state = descend(tx, steps=1)
    bad = make_params(2) | {"scale": jnp.asarray(jnp.nan)}
    updates, after = jax.jit(tx.update)(bad, state, params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(after.inner_state, state.inner_state)


@pytest.mark.promotes("optax's counts of steps are whole numbers")
@two_heads
def test_lookahead(head):
    tx, start = make(head), make_params()
    ahead = optax.lookahead(tx, sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(start)
    state, update = ahead.init(params), jax.jit(ahead.update)
    for n in (1, 2):
        updates, state = update(make_params(n), state, params)
        params = optax.apply_updates(params, updates)
    fast, _ = descend(tx, steps=2)
    close(params.slow, jax.tree.map(lambda a, b: 0.5 * (a + b), start, fast))
    close(params.fast, params.slow)


@two_heads
def test_schedule_free(head):
    tx = optax.contrib.schedule_free(make(head), learning_rate=0.1, b1=0.9)
    _, state = descend(tx, steps=1)
    expected, _ = descend(make(head), steps=1)
    close(state.z, expected)


# Trees.


@pytest.mark.slow
@pytest.mark.parametrize("head", ["none", "deepsets", "tied"])
@pytest.mark.parametrize(
    "params",
    [
        jnp.ones((2, 3)),
        jnp.float32(1.0),
        [[jnp.ones((2, 3)), jnp.ones(3)], [jnp.ones((3, 1)), jnp.ones(1)]],
        (jnp.ones(2), {"a": None, "b": [jnp.ones(2)]}),
        [1.0, 2.0],
        [np.ones(2, np.float32)],
    ],
    ids=["array", "scalar", "lists", "mixed", "floats", "numpy"],
)
def test_trees_as_users_write_them(head, params):
    tx = unf(weights_of(head))
    state = tx.init(params)
    updates, after = jax.jit(tx.update)(params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert all((u < 0).all() for u in jax.tree.leaves(updates)) or head == "tied"
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize("head", ["none", "deepsets", "tied"])
@pytest.mark.parametrize("params", [{}, [], {"a": {}, "b": None}, optax.MaskedNode()])
def test_nothing_to_update(head, params):
    tx = unf(weights_of(head), spec=SPEC if isinstance(params, optax.MaskedNode) else None)
    updates, state = tx.update(params, tx.init(params), params)
    assert updates == params
    assert state[0].count == 1


# Transformations.


@each_head
def test_vmap_over_parameters(head):
    tx = make(head)
    many = [(make_params(n + 10), make_params(n)) for n in range(3)]
    grads, params = jax.tree.map(lambda *x: jnp.stack(x), *many)
    states = jax.vmap(tx.init)(params)
    updates, states = jax.jit(jax.vmap(tx.update))(grads, states, params)
    for n, (g, p) in enumerate(many):
        close(jax.tree.map(lambda x, n=n: x[n], updates), jax.jit(tx.update)(g, tx.init(p), p)[0])
    assert states[0].count.shape == (3,)


@each_head
def test_vmap_over_meta_weights(head):
    params, grads = make_params(), make_params(1)
    many = [jax.tree.map(lambda x, c=c: c * x, weights_of(head)) for c in (0.5, 1.5)]

    @jax.jit
    def update(weights):
        tx = unf(weights, spec=SPEC)
        return tx.update(grads, tx.init(params), params)[0]

    together = jax.jit(jax.vmap(update))(jax.tree.map(lambda *x: jnp.stack(x), *many))
    for n, weights in enumerate(many):
        close(jax.tree.map(lambda x, n=n: x[n], together), update(weights))


@pytest.mark.slow
@each_head
def test_gradient_through_an_update(head):
    def after(weights, params, grads):
        tx = unf(weights, spec=SPEC)
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.tree.sum(jax.tree.map(jnp.square, optax.apply_updates(params, updates)))

    slope = jax.jit(jax.grad(after, argnums=(0, 1, 2)))
    arguments = (weights_of(head), make_params(), make_params(1))
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(3), x.shape), arguments)
    ahead, behind = (after(*jax.tree.map(lambda x, d, h=h: x + h * d, arguments, direction)) for h in (1e-3, -1e-3))
    predicted = optax.tree.vdot(slope(*arguments), direction)
    assert float(predicted) == pytest.approx(float(ahead - behind) / 2e-3, rel=2e-2, abs=2e-2)
    # Where nothing has a scale yet.
    zeros = jax.tree.map(jnp.zeros_like, make_params())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope(weights_of(head), zeros, zeros)))


# Convergence, on optax's own test problems.


def parabola(x):
    return jnp.sum((x - jnp.array([1.0, -1.0, 1.0])) ** 2)


def rosenbrock(x):
    return (1.0 - x[0]) ** 2 + 100.0 * (x[1] - x[0] ** 2) ** 2


def matrix(x):
    return jnp.sum((jnp.array([[1.0, 0.5], [0.2, 2.0]]) @ x - jnp.eye(2)) ** 2)


def pair(x):
    return jnp.sum((x[0] - 2.0) ** 2) + jnp.sum((x[1] + x[0][:1]) ** 2)


@pytest.mark.slow
@pytest.mark.promotes("biases are added to rows")
@pytest.mark.parametrize("name", ["mlp-fashion-mnist-sgdm", "mlp-fashion-mnist-deepsets"])
@pytest.mark.parametrize(
    ("loss", "start", "rate"),
    [
        (parabola, np.float32([-1.0, 10.0, 1.0]), None),
        (rosenbrock, np.zeros(2, np.float32), 1e-3),
        (matrix, np.zeros((2, 2), np.float32), None),
        (pair, (np.zeros(2, np.float32), np.ones((3, 1), np.float32)), None),
    ],
    ids=["parabola", "rosenbrock", "matrix", "pair"],
)
def test_convergence(name, loss, start, rate):
    weights = load_weights(name)
    tx = unf(weights, factor=(rate or 0.1) / weights.alpha, total_steps=30_000)

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(jnp.asarray, start)
    run = jax.jit(lambda: jax.lax.scan(body, (start, tx.init(start)), None, length=30_000)[0][0])
    assert loss(run()) < 1e-4
