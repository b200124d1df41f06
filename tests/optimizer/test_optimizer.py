"""Eq. 31: the optax transformation against the equation, and what it does with odd input."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

from optax_unf import Architecture, InitialScalars, init_weights, make_spec, scale_by_unf, unf
from optax_unf.optimizer.features import DECAYS, SQUARE_DECAY, TIME_SCALES

AXES = {"first": {"kernel": ("in", "hidden"), "bias": ("hidden",)}, "second": {"kernel": ("hidden", "out")}}


def make_params(key=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(key), 3)
    return {
        "first": {
            "kernel": jax.random.normal(keys[0], (3, 4), dtype),
            "bias": jax.random.normal(keys[1], (4,), dtype),
        },
        "second": {"kernel": jax.random.normal(keys[2], (4, 2), dtype)},
    }


def make_weights(head="unf", coefficients="full", beta=0.5, **kwargs):
    architecture = Architecture(head=head, coefficients=coefficients, hidden_channels=8, **kwargs)
    scalars = InitialScalars(alpha=0.1, beta=beta, warmup_time=3.0)
    return init_weights(architecture, make_spec(AXES, make_params()), jax.random.key(7), scalars)


def by_hand(weights, grads_of_steps, params):
    """Eq. 31 with Deep Sets, written entry by entry in float64: the directions of all steps."""
    theta = jax.tree.map(lambda x: np.asarray(x, np.float64), weights.theta)
    gamma_0 = 1 / (1 + np.exp(-theta.scalars.logit_gamma_0))
    decays = [gamma_0, *DECAYS]
    params, grads_of_steps = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, grads_of_steps))
    momenta = [jax.tree.map(np.zeros_like, params) for _ in decays]
    directions = []
    for t, grads in enumerate(grads_of_steps):
        if weights.architecture.preconditioner == "rms":
            # The mean square over time as a weighted sum, whose weights are divided by their own sum.
            ages = SQUARE_DECAY ** np.arange(t, -1, -1.0)
            history = grads_of_steps[: t + 1]
            squares = jax.tree.map(lambda *gs, a=ages: np.tensordot(a / a.sum(), np.square(gs), 1), *history)
            grads = jax.tree.map(lambda g, v: g / np.sqrt(v), grads, squares)
        momenta = [
            jax.tree.map(lambda m, g, d=d: d * m + (1 - d) * g, m, grads) for d, m in zip(decays, momenta, strict=True)
        ]
        time = np.tanh(t / np.array(TIME_SCALES) - 1)

        def leaf(w, g, m0, *ms, t=t, time=time):
            channels = []
            for n, x in enumerate((w, g, *ms)):
                mean_square = np.mean(x**2)
                if n and weights.architecture.preconditioner == "rms":
                    # Of a weighted sum of unit noise: the sum of the squared weights.
                    decay = 0.0 if n == 1 else DECAYS[n - 2]
                    mean_square = sum(((1 - decay) * decay**age) ** 2 for age in range(t + 1))
                channels.append(np.clip(x / np.sqrt(mean_square + 1e-16), -10, 10))
            x = np.stack([*channels, *(np.full(w.shape, e) for e in time)], axis=-1)
            layers = theta.network
            for n in range(3):
                x = np.maximum(x @ layers[n]["kernel"] + layers[n]["bias"], 0)
            out = x @ layers[-1]["kernel"] + layers[-1]["bias"]
            factor = (
                1 - np.exp(-(t + 1) / np.exp(theta.scalars.log_step_warmup)) if weights.architecture.step_warmup else 1
            )
            return factor * (m0 + theta.scalars.beta * out[..., 0])

        directions.append(jax.tree.map(leaf, params, grads, *momenta))
    return directions


@pytest.mark.parametrize(("preconditioner", "step_warmup"), [(None, False), ("rms", False), (None, True)])
def test_update_is_equation_31(preconditioner, step_warmup):
    weights = make_weights("deepsets", preconditioner=preconditioner, step_warmup=step_warmup)
    params = make_params()
    grads = [make_params(key) for key in (1, 2, 3)]
    tx = scale_by_unf(weights)
    state = tx.init(params)
    for g, expected in zip(grads, by_hand(weights, grads, params), strict=True):
        direction, state = jax.jit(tx.update)(g, state, params)
        chex.assert_trees_all_close(direction, jax.tree.map(np.float32, expected), rtol=2e-4, atol=2e-4)
    assert state.count == 3


@pytest.mark.parametrize("factor", [1.0, 0.3, optax.linear_schedule(0.3, 0.1, 2)])
@pytest.mark.parametrize("total_steps", [None, 4])
def test_the_step_is_alpha_times_the_factor_times_a_cosine(factor, total_steps):
    weights, params, grads = make_weights(), make_params(), make_params(1)
    plain = scale_by_unf(weights, spec=AXES)
    full = unf(weights, spec=AXES, factor=factor, total_steps=total_steps)
    plain_state, full_state = plain.init(params), full.init(params)
    for step, cosine in enumerate([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0, 0]):
        direction, plain_state = plain.update(grads, plain_state, params)
        update, full_state = full.update(grads, full_state, params)
        size = weights.alpha * (factor(step) if callable(factor) else factor) * (cosine if total_steps else 1)
        chex.assert_trees_all_close(update, jax.tree.map(lambda d, s=size: -s * d, direction), rtol=1e-6, atol=1e-9)


def test_sgdm_is_optax_sgd_with_momentum():
    weights, params = make_weights("none"), make_params()
    alpha, gamma = float(weights.alpha), float(weights.gamma_0)
    ours, theirs = unf(weights), optax.sgd(alpha * (1 - gamma), momentum=gamma)
    ours_state, theirs_state = ours.init(params), theirs.init(params)
    for key in range(5):
        a, ours_state = ours.update(make_params(key), ours_state, params)
        b, theirs_state = theirs.update(make_params(key), theirs_state, params)
        chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.promotes("optax's counts of steps are whole numbers")
def test_sgdm_by_entry_is_adam():
    # But for the correction of the first moment, which `scale_by_adam` divides by 1 - gamma^t.
    weights, params = make_weights("none", preconditioner="rms"), make_params()
    gamma = float(weights.gamma_0)
    ours, theirs = scale_by_unf(weights), optax.scale_by_adam(b1=gamma, b2=SQUARE_DECAY)
    ours_state, theirs_state = ours.init(params), theirs.init(params)
    grads = make_params(1)
    for t in range(1, 4):
        a, ours_state = ours.update(grads, ours_state, params)
        b, theirs_state = theirs.update(grads, theirs_state, params)
        chex.assert_trees_all_close(a, jax.tree.map(lambda x, t=t: x * (1 - gamma**t), b), rtol=1e-4)


def test_the_first_steps_of_a_warm_up_are_small_and_the_last_ones_whole():
    plain, warm = make_weights("none"), make_weights("none", step_warmup=True)
    expected = [0.283469, 0.486583, 0.632121]  # 1 - exp(-(t + 1) / 3)
    np.testing.assert_allclose(jax.vmap(warm.theta.scalars.warmup)(jnp.arange(3)), expected, rtol=1e-5)
    assert warm.theta.scalars.warmup(jnp.int32(2**31 - 1)) == 1 == plain.theta.scalars.warmup(jnp.int32(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "coefficients", "preconditioner", "equivariant_layers"),
    [("unf", "full", None, ()), ("unf", "tied", None, ()), ("unf", "full", "rms", ()), ("unf", "tied", "rms", ())]
    + [(head, "full", None, ()) for head in ("deepsets", "nfn", "none")]
    + [("unf", "full", None, (1,)), ("unf", "tied", None, (1, 2)), ("nfn", "full", None, (2,))],
)
def test_update_commutes_with_the_group(head, coefficients, preconditioner, equivariant_layers):
    weights = make_weights(head, coefficients, preconditioner=preconditioner, equivariant_layers=equivariant_layers)
    spec = make_spec(AXES, make_params())
    tx = unf(weights, spec=spec)
    permutation = spec.random_permutation(jax.random.key(5))

    def train(permute):
        params = permute(make_params())
        state = tx.init(params)
        for key in (1, 2):
            updates, state = tx.update(permute(make_params(key)), state, params)
            params = optax.apply_updates(params, updates)
        return params

    once = spec.permute(permutation, train(lambda tree: tree))
    twice = train(lambda tree: spec.permute(permutation, tree))
    chex.assert_trees_all_close(once, twice, rtol=1e-5, atol=1e-5)


def test_vmap_over_meta_weights():
    params, grads = make_params(), make_params(1)
    many = [jax.tree.map(lambda x, c=c: c * x, make_weights()) for c in (0.5, 1.0, 1.5)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *many)

    def update(weights):
        tx = unf(weights, spec=AXES)
        return tx.update(grads, tx.init(params), params)[0]

    together, alone = jax.jit(jax.vmap(update))(stacked), jax.jit(update)
    for n, weights in enumerate(many):
        chex.assert_trees_all_close(jax.tree.map(lambda x, n=n: x[n], together), alone(weights), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("preconditioner", [None, "rms"])
def test_gradient_through_two_updates(preconditioner):
    params = make_params()

    def norm(weights):
        # The second gradient depends on the weights, but for rows that are 0, as those of tokens that were not read.
        tx = unf(weights, spec=AXES)
        grads = jax.tree.map(lambda x: x.at[0].set(0.0), make_params(1))
        updates, state = tx.update(grads, tx.init(params), params)
        grads = jax.tree.map(lambda g, p, u: g * (p + u), grads, params, updates)
        return optax.tree.norm(tx.update(grads, state, params)[0])

    slope = jax.jit(jax.grad(norm))(make_weights(preconditioner=preconditioner))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
    assert slope.theta.scalars.beta != 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_updates_have_the_parameters_dtype(dtype):
    params = make_params(dtype=dtype)
    tx = unf(make_weights(), spec=AXES)
    updates, state = jax.jit(tx.update)(make_params(1, dtype), tx.init(params), params)
    assert all(u.dtype == dtype for u in jax.tree.leaves(updates))
    assert all(m.dtype == jnp.float32 for m in jax.tree.leaves(state[0].mu))


@pytest.mark.slow
def test_float64():
    tx = unf(make_weights(), spec=AXES)
    with jax.enable_x64(True):
        params = make_params(dtype=jnp.float64)
        updates, _ = jax.jit(tx.update)(make_params(1, jnp.float64), tx.init(params), params)
        assert all(u.dtype == jnp.float64 for u in jax.tree.leaves(updates))


@pytest.mark.slow
@pytest.mark.parametrize("preconditioner", [None, "rms"])
def test_finite_input_gives_finite_updates(preconditioner):
    tx = unf(make_weights(preconditioner=preconditioner), spec=AXES)
    update = jax.jit(tx.update)
    scales = itertools.product([0.0, 1e-38, 1e-30, 1e-8, 1.0, 1e15, 1e30], [0.0, 1e-30, 1.0, 1e30])
    for gradient_scale, weight_scale in scales:
        params = jax.tree.map(lambda x, scale=weight_scale: x * scale, make_params())
        grads = jax.tree.map(lambda x, scale=gradient_scale: x * scale, make_params(1))
        state = tx.init(params)
        for _ in range(2):
            updates, state = update(grads, state, params)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))


def test_one_large_gradient_by_entry_is_a_bounded_step():
    """Whatever its size: in a mean square of decay 0.999, one number is at most 1 / sqrt(0.001) of the root."""
    tx = scale_by_unf(make_weights("none", preconditioner="rms"), spec=AXES)
    params, ones = make_params(), jax.tree.map(jnp.ones_like, make_params())
    largest = []
    for size in (1e3, 1e15, 1e18, 1e30, 3e38):
        state = tx.init(params)
        for scale in (1.0, size, 1.0):
            direction, state = tx.update(jax.tree.map(lambda x, s=scale: s * x, ones), state, params)
            largest.append(max(float(jnp.abs(x).max()) for x in jax.tree.leaves(direction)))
    assert max(largest) < 1 / np.sqrt(0.001)
    infinite, _ = tx.update(jax.tree.map(lambda x: jnp.inf * x, ones), tx.init(params), params)
    assert all(jnp.isinf(x).all() for x in jax.tree.leaves(infinite))


def test_gradients_by_entry_have_no_scale():
    # One scale for each entry and all time, which Adam does not see either.
    weights = make_weights("deepsets", preconditioner="rms")
    scales = jax.tree.map(lambda x: jnp.exp(3.0 * x), make_params(9))

    def train(scale):
        tx, params = scale_by_unf(weights, spec=AXES), make_params()
        state = tx.init(params)
        for key in (1, 2, 3):
            direction, state = tx.update(jax.tree.map(jnp.multiply, scale, make_params(key)), state, params)
        return direction

    chex.assert_trees_all_close(train(scales), train(jax.tree.map(jnp.ones_like, scales)), rtol=1e-4, atol=1e-5)


def test_a_state_of_another_preconditioner_is_refused():
    params = make_params()
    plain, preconditioned = (scale_by_unf(make_weights(preconditioner=name), spec=AXES) for name in (None, "rms"))
    with pytest.raises(ValueError, match=r"lacks mean squares.*preconditioner='rms'"):
        preconditioned.update(params, plain.init(params), params)
    with pytest.raises(ValueError, match=r"has mean squares.*preconditioner=None"):
        plain.update(params, preconditioned.init(params), params)


@pytest.mark.slow
@pytest.mark.parametrize("preconditioner", [None, "rms"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_gradient_that_is_not_finite_is_seen_and_can_be_dropped(bad, preconditioner):
    params = make_params()
    tx = unf(make_weights(preconditioner=preconditioner), spec=AXES)
    grads = make_params(1)
    broken = jax.tree.map(jnp.copy, grads)
    broken["first"]["kernel"] = broken["first"]["kernel"].at[1, 2].set(bad)
    updates, _ = tx.update(broken, tx.init(params), params)
    assert not np.isfinite(updates["first"]["kernel"][1, 2])

    safe = optax.apply_if_finite(tx, max_consecutive_errors=3)
    state = safe.init(params)
    for g in (grads, broken):
        updates, state = safe.update(g, state, params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    once = tx.update(grads, tx.init(params), params)[1]
    chex.assert_trees_all_close(state.inner_state, once, rtol=1e-6)


def test_no_retracing():
    params = make_params()
    tx = unf(make_weights(), spec=AXES)

    @jax.jit
    @chex.assert_max_traces(1)
    def step(grads, state, params):
        return tx.update(grads, state, params, value=1.0, unknown="ignored")

    state = tx.init(params)
    for key in range(3):
        updates, state = step(make_params(key), state, params)
        params = optax.apply_updates(params, updates)
    chex.clear_trace_counter()


@pytest.mark.parametrize("params", [{}, [], None, {"nothing": {}}])
def test_empty_trees_are_no_ops(params):
    weights = init_weights(Architecture(head="deepsets"), make_spec(AXES, make_params()), jax.random.key(0))
    tx = unf(weights)
    state = tx.init(params)
    if params is None:
        params = {}
        state = tx.init(params)
    updates, state = tx.update(params, state, params)
    assert jax.tree.leaves(updates) == []
    assert state[0].count == 1


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 1, 2, 1, 2, 1)])
@pytest.mark.parametrize("coefficients", ["full", "tied"])
def test_any_shape_as_a_bare_array(shape, coefficients):
    params = jnp.ones(shape)
    config = Architecture(coefficients=coefficients, hidden_channels=4, hidden_layers=1)
    weights = init_weights(config, make_spec(None, params), jax.random.key(0))
    tx = unf(weights)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert updates.shape == shape
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))


@pytest.mark.slow
def test_tied_and_deep_sets_weights_fit_any_space():
    params = {"conv": jnp.ones((3, 3, 2, 4)), "scale": jnp.ones(4), "temperature": jnp.ones(())}
    axes = {"conv": (None, None, "in", "out"), "scale": ("out",), "temperature": ()}
    for weights in (make_weights("deepsets"), make_weights("unf", "tied")):
        for spec in (axes, None):
            tx = unf(weights, spec=spec)
            updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
            chex.assert_trees_all_equal_shapes(updates, params)


def test_frozen_parameters_with_a_plain_spec():
    params, grads = FrozenDict(make_params()), FrozenDict(make_params(1))
    tx = unf(make_weights(), spec=AXES)
    frozen, _ = tx.update(grads, tx.init(params), params)
    plain, _ = tx.update(make_params(1), tx.init(make_params()), make_params())
    assert isinstance(frozen, FrozenDict)
    chex.assert_trees_all_equal(frozen.unfreeze(), plain)


def test_names_may_differ_from_those_of_the_weights():
    renamed = {"first": {"kernel": (0, 1), "bias": (1,)}, "second": {"kernel": (1, 2)}}
    params, grads = make_params(), make_params(1)
    a, b = (unf(make_weights(), spec=spec) for spec in (AXES, renamed))
    chex.assert_trees_all_close(
        a.update(grads, a.init(params), params)[0], b.update(grads, b.init(params), params)[0], rtol=1e-5, atol=1e-6
    )


def update_with(params, grads=None, spec=None, weights=None):
    tx = unf(weights or make_weights(), spec=spec)
    state = tx.init(params)
    return tx.update(params if grads is None else grads, state, params)


def initial():
    return scale_by_unf(make_weights()).init(make_params())


def update_from(state):
    return scale_by_unf(make_weights()).update(make_params(), state, make_params())


def without(tree, name):
    return {key: value for key, value in tree.items() if key != name}


def test_parameters_that_do_not_fit_are_refused_by_init():
    """Not by the first update, which is often inside of jit."""
    tx = unf("mlp-fashion-mnist-unf")
    with pytest.raises(ValueError, match=r"fit only the weight space .*differs at leaf 'dense_0/bias'.*Use weights"):
        tx.init({"w": jnp.ones((3, 2)), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"must have an entry for .*'second'"):
        unf("mlp-fashion-mnist-deepsets", spec={"first": AXES["first"]}).init(make_params())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: unf(make_weights()).update(make_params(), unf(make_weights()).init(make_params())),
            ValueError,
            r"update\(gradients, state, params\)",
        ),
        (lambda: update_with(make_params(), without(make_params(), "second")), ValueError, "lacks 'second/kernel'"),
        (
            lambda: update_with(make_params(), {**make_params(), "third": jnp.ones(2)}),
            ValueError,
            "no entry for the leaf 'third'",
        ),
        (
            lambda: update_with(make_params(), {**make_params(), "second": {"kernel": jnp.ones((2, 4))}}),
            ValueError,
            r"'second/kernel' of the gradients must have shape \(4, 2\).*has \(2, 4\)",
        ),
        (lambda: update_with({"w": jnp.ones(3, jnp.int32)}), TypeError, "parameter 'w' is int32"),
        (lambda: update_with({"w": jnp.ones(3, jnp.complex64)}), TypeError, "parameter 'w' is complex64"),
        (
            lambda: update_with(make_params(), jax.tree.map(jnp.int32, make_params())),
            TypeError,
            "gradient 'first/bias'",
        ),
        (
            lambda: update_with({**make_params(), "second": {"kernel": jnp.ones((4, 3))}}),
            ValueError,
            r"differs at leaf 'second/kernel': the weights want shape \(4, 2\).*have shape \(4, 3\)",
        ),
        (lambda: update_with({"w": jnp.ones((2, 2))}), ValueError, "differs at leaf 'first/bias'.*no such leaf"),
        (
            lambda: update_with(
                make_params(),
                spec={"first": {"kernel": ("a", "b"), "bias": ("b",)}, "second": {"kernel": ("c", "d")}},
            ),
            ValueError,
            "differs at leaf 'second/kernel'",
        ),
        (
            lambda: update_with(make_params(), spec={"first": AXES["first"]}),
            ValueError,
            "must have an entry for .*'second'",
        ),
        (
            lambda: update_with(make_params(), jax.tree.map(lambda x: None if x.ndim == 1 else x, make_params())),
            ValueError,
            "gradients must have .*lacks 'first/bias'.*Give gradients that are a tree like the parameters",
        ),
        (lambda: unf(make_weights()).init({"w": jnp.ones(3), "act": jnp.tanh}), TypeError, "'act' is .*equinox.filter"),
        (lambda: unf(make_weights()).init({"w": jnp.ones(3), "act": "relu"}), TypeError, "parameter 'act' is 'relu'"),
        (lambda: unf(1e-3), TypeError, r"a path, but are of type float\. A learning rate is not needed"),
        (lambda: unf(make_weights(), factor="0.1"), TypeError, "factor must be a number or .* schedule, but is '0.1'"),
        (lambda: unf(learning_rate=1e-3), TypeError, "learning_rate"),
        (lambda: unf(total_steps=0), ValueError, "total_steps must be positive, .* is 0"),
        (lambda: unf(total_steps=0.5), TypeError, "total_steps must be an integer, .* is 0.5"),
        (lambda: unf(total_steps="100"), TypeError, "total_steps must be an integer, .* is '100'"),
        (
            lambda: unf(make_weights(), accumulator_dtype="bf16"),
            TypeError,
            "real floating-point of either sign, .*is 'bf16'",
        ),
        (
            lambda: update_from(optax.adam(0.1).init(make_params())),
            TypeError,
            "must be the ScaleByUNFState.*is a tuple",
        ),
        (lambda: update_from({"count": 0}), TypeError, "is a dict.*into the structure of optimizer.init"),
        (lambda: update_from(initial()._replace(mu=initial().mu[:6])), ValueError, "7 trees .* holds 6"),
        (
            lambda: update_from(initial()._replace(mu=[jax.tree.map(lambda x: x[:1], m) for m in initial().mu])),
            ValueError,
            r"'first/bias' of the momenta must have shape \(4,\).*has \(1,\)",
        ),
    ],
)
def test_bad_input_gets_a_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Architecture(head="transformer"), "head must be"),
        (lambda: Architecture(coefficients="some"), "coefficients must be"),
        (lambda: Architecture(hidden_channels=0), "must be positive"),
        (lambda: Architecture(equivariant_layers=(3,)), r"numbers from 1 to 2, .* but are \(3,\)"),
        (lambda: Architecture(equivariant_layers=(0,)), r"numbers from 1 to 2, .* but are \(0,\)"),
        (lambda: Architecture("deepsets", equivariant_layers=(1,)), "of the head's kind, .* head is 'deepsets'"),
        (lambda: Architecture(preconditioner="adam"), "preconditioner must be None or 'rms', but is 'adam'"),
        (lambda: InitialScalars(alpha=0.0), "alpha must be positive"),
        (lambda: InitialScalars(gamma_0=1.0), r"gamma_0 must be in \(0, 1\)"),
        (lambda: InitialScalars(warmup_time=0.0), "warmup_time must be a positive number of steps"),
    ],
)
def test_architectures_and_scalars_that_cannot_work_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
