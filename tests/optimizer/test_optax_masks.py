"""Partial trees under optax's wrappers: masks, partitions, frozen leaves."""

import jax
import optax
import pytest
from learned import AXES, SPEC, close, descend, make, make_params, make_weights, two_heads, weights_of

from optax_unf import make_spec, unf

KERNELS = {"w": True, "b": False, "scale": False}


def only(tree, mask=KERNELS):
    return {key: x for key, x in tree.items() if mask[key]}


def spec_of(kind):
    return {"names": AXES, "spec": SPEC, "none": None, "part": make_spec(only(AXES), only(make_params()))}[kind]


@pytest.mark.parametrize(
    ("head", "kind"), [("tied", "names"), ("tied", "spec"), ("tied", "none"), ("tied", "part"), ("none", "spec")]
)
def test_masked_is_the_optimizer_of_the_part(head, kind):
    tx = unf(weights_of(head), spec=spec_of(kind))
    params, state = descend(optax.masked(tx, KERNELS), steps=2)
    expected, _ = descend_part(tx, steps=2)
    # masked passes on the gradients of the rest as they are.
    rest = {k: x + make_params(1)[k] + make_params(2)[k] for k, x in make_params().items() if not KERNELS[k]}
    close(params, expected | rest)
    assert optax.tree.get(state, "count") == 2


def descend_part(tx, steps=3):
    params = only(make_params())
    state, update = tx.init(params), jax.jit(tx.update)
    for n in range(steps):
        updates, state = update(only(make_params(n + 1)), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.promotes("optax's counts of steps are whole numbers")
@pytest.mark.parametrize("head", ["none", "tied"])
def test_partition_gives_each_leaf_to_one_optimizer(head):
    tx, labels = make(head), {key: "learned" if mask else "adam" for key, mask in KERNELS.items()}
    adam = optax.adam(0.1)
    params, _ = descend(optax.partition({"learned": tx, "adam": adam}, labels))
    kernels, _ = descend(optax.masked(tx, KERNELS))
    rest, _ = descend(adam)
    close(params, {key: (kernels if mask else rest)[key] for key, mask in KERNELS.items()})


@two_heads
def test_freeze_keeps_parameters(head):
    frozen = {key: not mask for key, mask in KERNELS.items()}
    params, _ = descend(optax.chain(make(head), optax.freeze(frozen)))
    assert all((params[key] == make_params()[key]).all() == frozen[key] for key in params)
    moving, _ = descend(make(head), steps=1)
    close(descend(optax.chain(make(head), optax.freeze(frozen)), steps=1)[0]["w"], moving["w"])


@pytest.mark.parametrize("kind", ["names", "spec", "none"])
def test_full_coefficients_refuse_a_part(kind):
    tx = optax.masked(unf(weights_of("full"), spec=spec_of(kind)), KERNELS)
    with pytest.raises(ValueError, match=r"full coefficients, which fit only.*parameters have no such leaf"):
        tx.init(make_params())


def test_full_coefficients_leave_nothing_as_it_is():
    nothing = dict.fromkeys(KERNELS, False)
    tx = optax.masked(unf(weights_of("full"), spec=SPEC), nothing)
    updates, _ = tx.update(make_params(1), tx.init(make_params()), make_params())
    close(updates, make_params(1))


@pytest.mark.parametrize("kind", ["names", "spec"])
def test_full_coefficients_of_the_part_fit_it(kind):
    weights = make_weights("full", make_spec(only(AXES), only(make_params())))
    tx = unf(weights, spec=spec_of(kind))
    masked, _ = descend(optax.masked(tx, KERNELS))
    close(only(masked), descend_part(tx)[0])


def test_a_leaf_without_an_entry_is_an_error_under_a_mask_too():
    tx = optax.masked(
        unf(weights_of("deepsets"), spec=make_spec({"w": AXES["w"]}, only(make_params()))), {**KERNELS, "b": True}
    )
    with pytest.raises(ValueError, match="no entry for the leaf 'b'"):
        tx.init(make_params())


def test_parameters_joined_into_one_vector_are_an_error():
    tx = optax.flatten(unf(weights_of("deepsets"), spec=SPEC))
    with pytest.raises(ValueError, match=r"must have the parameters, but has none of .*optax\.flatten"):
        tx.init(make_params())
