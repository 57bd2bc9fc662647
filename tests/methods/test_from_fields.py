"""The method that a config's fields describe: its checks, its rhythm, its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samon_jax as samon
from samon_jax import methods
from samon_jax.methods import PLAIN, RENEW, REUSE, SHARP, LearningRate, Now
from tests import reference
from tests.several_devices import over_devices

DEFAULTS = {name: field.default for name, field in methods.FIELDS.items()}
NOW = Now(seed=np.uint32(3), rho=np.float32(0.3), step=np.int32(0))
COSINE = LearningRate(optax.cosine_decay_schedule(0.1, 20), 0.0, 0.1)


def build(epochs=4, steps_per_epoch=5, axis_name=None, trainable=None, **fields):
    return methods.from_fields(
        DEFAULTS | {"variant": "sam", "mask": "all"} | fields,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        learning_rate=COSINE,
        trainable=trainable,
        axis_name=axis_name,
    )


def losses_fn(params, batch, train=True):
    """A network whose "norms" only scale and shift, so that examples do not interact."""
    x, y = batch
    for name, norm in (("a", "norm1"), ("b", "norm2")):
        x = jnp.tanh(x @ params[name]["kernel"] * params[norm]["scale"] + params[norm]["bias"])
    losses = jnp.mean((x @ params["c"]["kernel"] + params["c"]["bias"] - y) ** 2, axis=1)
    return losses, {"seen": jnp.asarray(len(x)), "norms": params["norm1"]["scale"].sum()}


def mean_loss(params, batch):
    losses, aux = losses_fn(params, batch)
    return losses.mean(), aux


def loss(params, x, y):
    return losses_fn(params, (x, y))[0].mean()


def run(method, state=None, kind=SHARP, now=NOW, batch=None):
    params = reference.mlp()
    state = method.init(params, now) if state is None else state
    batch = reference.data(12) if batch is None else batch
    step = jax.jit(lambda *args: method.gradient(losses_fn, *args, kind))
    return step(params, state, batch, now)


def assert_close(actual, expected):
    """But for rounding: GSAM's two programs are compiled differently."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7), actual, expected)


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


ASCENT = samon.variant("sam", 0.3)
VALUE_AND_GRADS = {
    "sam": ({}, lambda: samon.value_and_grad(mean_loss, ASCENT, has_aux=True)),
    "m": (
        {"m": 4},
        lambda: samon.value_and_grad(mean_loss, ASCENT, has_aux=True, m=4, batch_argnums=0),
    ),
    "gsam": (
        {"gsam_alpha": 0.4},
        lambda: samon.value_and_grad(mean_loss, ASCENT, has_aux=True, combine=samon.gsam(0.4)),
    ),
    "esam": (
        {"esam_gamma": 0.5},
        lambda: samon.esam(losses_fn, ASCENT, gamma=0.5, has_aux=True, batch_argnums=0),
    ),
    "ascent_fraction": (
        {"ascent_fraction": 0.25},
        lambda: samon.value_and_grad(
            mean_loss, ASCENT, has_aux=True, ascent_fraction=0.25, batch_argnums=0
        ),
    ),
}


@pytest.mark.parametrize("name", VALUE_AND_GRADS)
def test_fields_give_what_the_library_gives(name):
    fields, make = VALUE_AND_GRADS[name]
    params, batch = reference.mlp(), reference.data(12)
    value, grads, state = jax.jit(make())(params, ASCENT.init(params), batch)
    found = run(build(**fields))
    same = assert_close if name == "gsam" else assert_equal
    same(((found.loss, found.aux), found.grads, found.state), (value, grads, state))
    assert_equal(found.perturbed_aux, found.aux)


def test_without_perturbation_it_is_the_plain_gradient():
    method = build(variant="none", gsam_alpha=0.1, esam_gamma=0.5)  # ignored, not refused
    assert (method.kinds, method.kind(7)) == ((PLAIN,), PLAIN)
    assert method.init(reference.mlp(), NOW) == ()
    found = run(method, kind=PLAIN)
    grad = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    assert_equal(((found.loss, found.aux), found.grads), grad(reference.mlp(), reference.data(12)))


@pytest.mark.parametrize("statistics", ["perturbed", "both"])
def test_the_aux_of_the_perturbed_pass_is_kept_where_statistics_need_it(statistics):
    found = run(build(batch_stats=statistics, mask="only_norm"))
    want = reference.two_passes(loss, reference.mlp(), 0.3, reference.is_norm, *reference.data(12))[
        1
    ]
    reference.assert_close(found.grads, want)
    clean = float(reference.mlp()["norm1"]["scale"].sum())
    assert float(found.aux["norms"]) == pytest.approx(clean)
    assert float(found.perturbed_aux["norms"]) != pytest.approx(clean)


def test_every_kind_of_step_is_said_on_the_host():
    def kinds(**fields):
        method = build(**fields)
        said = [method.kind(step) for step in range(20)]
        assert set(said) <= set(method.kinds)
        return said

    assert kinds() == [SHARP] * 20
    assert kinds(start=1, stop=3) == [PLAIN] * 5 + [SHARP] * 10 + [PLAIN] * 5
    look = [SHARP, REUSE, REUSE] * 4
    assert kinds(look_every=3, start=2) == [PLAIN] * 10 + look[:10]
    renews = [RENEW, *[SHARP] * 9]
    assert kinds(sparse="ssam_f", sparse_update_epochs=2) == renews * 2
    assert kinds(sparse="ssam_f", sparse_update_epochs=2, start=1) == [PLAIN] * 5 + renews + [
        RENEW,
        *[SHARP] * 4,
    ]
    assert kinds(sparse="ssam_d") == [SHARP] * 20


def test_looksam_reuses_the_direction_of_its_sharp_step():
    method = build(look_every=5)
    params, batch = reference.mlp(), reference.data(12)
    look = samon.looksam(mean_loss, ASCENT, every=5, has_aux=True)
    _, grads, state = jax.jit(look.sharp)(params, look.init(params), batch)
    sharp = run(method)
    assert_equal((sharp.grads, sharp.state), (grads, state))
    _, grads, state = jax.jit(look.plain)(params, state, batch)
    reused = run(method, sharp.state, REUSE)
    assert_equal((reused.grads, reused.state), (grads, state))
    plain = run(method, sharp.state, PLAIN)
    assert_equal(plain.state, sharp.state)
    assert_equal(plain.grads, jax.jit(jax.grad(mean_loss, has_aux=True))(params, batch)[0])


def information(params, x, y):
    """Mean of the squared gradients of single examples, one at a time."""
    grads = [jax.grad(loss)(params, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    return jax.tree.map(lambda *g: np.mean(np.square(np.stack(g)), 0), *grads)


def assert_top(mask, scores, share):
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(scores)])
    chosen = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(mask)])
    assert chosen.sum() == round(share * flat.size)
    assert flat[chosen].min() >= flat[~chosen].max() * (1 - 1e-5)


@pytest.mark.parametrize(("samples", "used"), [(5, 5), (99, 12)])
def test_ssam_f_renews_its_mask_from_the_first_examples_of_the_batch(samples, used):
    method = build(sparse="ssam_f", sparsity=0.75, fisher_samples=samples)
    found = run(method, kind=RENEW)
    x, y = reference.data(12)
    assert_top(found.state.mask, information(reference.mlp(), x[:used], y[:used]), 0.25)
    again = run(method, method.init(reference.mlp(), NOW)._replace(mask=found.state.mask))
    assert_equal(found.grads, again.grads)


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_devices_share_the_information_of_their_examples(how):
    method = build(sparse="ssam_f", sparsity=0.75, fisher_samples=6, axis_name="batch")
    params, (x, y) = reference.mlp(), reference.data(16)

    def step(params, state, x, y):
        found = method.gradient(losses_fn, params, state, (x, y), NOW, RENEW)
        return found.loss, jax.lax.pmean(found.grads, "batch"), found.state

    state = method.init(params, NOW)
    _, _, state = over_devices(step, how, params, state, x, y, devices=2, axis_name="batch")
    first = np.r_[0:3, 8:11]
    assert_top(state.mask, information(params, x[first], y[first]), 0.25)


def test_esam_and_sparse_masks_draw_with_the_seed():
    method = build(sparse="ssam_f", esam_beta=0.5)
    one, same, other = (
        method.init(reference.mlp(), NOW._replace(seed=np.uint32(seed))) for seed in (1, 1, 2)
    )
    assert_equal(one, same)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), one.mask, other.mask)))
    assert not np.array_equal(one.ascent_state.key, other.ascent_state.key)


@pytest.mark.parametrize("step", [0, 7, 15])
def test_the_radius_follows_the_learning_rate(step):
    """ρ_min + (ρ - ρ_min) lr / lr_max; what `now` says of ρ is not read."""
    found = run(build(rho=0.5, rho_min=0.1), now=NOW._replace(step=np.int32(step)))
    radius = 0.1 + 0.4 * (1 + np.cos(np.pi * step / 20)) / 2
    want = reference.two_passes(
        loss, reference.mlp(), radius, lambda path: True, *reference.data(12)
    )[1]
    reference.assert_close(found.grads, want)


BAD = [
    ({"variant": "sma"}, "sam.variant='sma' is not allowed; it must be one of sam, elementwise_l2"),
    ({"rho": -0.1}, "sam.rho=-0.1 is not allowed; it must be a finite number >= 0"),
    ({"rho": "0.1"}, "sam.rho='0.1' is not allowed"),
    ({"m": 2.0}, "sam.m=2.0 is not allowed; it must be an integer >= 0"),
    ({"mask": "norms"}, "sam.mask='norms' is not allowed: mask='norms' does not exist; choose one"),
    ({"mask": "only_norm_in:st[3"}, "sam.mask='only_norm_in:st[3' is not allowed: path_regex="),
    ({"mask": "random:1"}, "sam.mask='random:1' is not allowed: sparsity=1.0"),
    ({"mask": "random:few"}, "sam.mask='random:few' is not allowed: sparsity=nan"),
    ({"mask": 3}, "sam.mask=3 is not allowed; it must be text"),
    ({"eta": 0.1}, "sam.eta=0.1 has no effect on variant='sam'"),
    ({"start": 4}, "sam.start=4 is not allowed; it must be an integer, 0 <= value <= 3"),
    ({"start": 2, "stop": 2}, "sam.stop=2 is not allowed; it must be 0 (to the end), or 2 < value"),
    ({"stop": 5}, "sam.stop=5 is not allowed"),
    ({"batch_stats": "mean"}, "sam.batch_stats='mean' is not allowed"),
    ({"rho_min": 0.4}, "sam.rho_min=0.4 is not allowed; it must be at most rho=0.2"),
    ({"sparse": "ssam_f", "sparsity": 1.0}, "sam.sparsity=1.0 is not allowed"),
    ({"esam_gamma": 0}, "sam.esam_gamma=0 is not allowed; it must be a number, 0 < value <= 1"),
    ({"look_every": 0}, "sam.look_every=0 is not allowed; it must be an integer >= 1"),
    ({"reuse_prefix": 1}, "sam.reuse_prefix=1 is not allowed; it must be True or False"),
]
CONTRADICTIONS = [
    ({"mask": "only_norm", "sparse": "ssam_d"}, "mask", "sparse"),
    ({"sparse": "ssam_f", "look_every": 2}, "sparse", "look_every"),
    ({"gsam_alpha": 0.1, "look_every": 2}, "gsam_alpha", "look_every"),
    ({"esam_gamma": 0.5, "look_every": 2}, "esam_gamma", "look_every"),
    ({"ascent_fraction": 0.5, "look_every": 2}, "ascent_fraction", "look_every"),
    ({"batch_stats": "both", "look_every": 2}, "batch_stats", "look_every"),
    ({"m": 4, "esam_gamma": 0.5}, "m", "esam_gamma"),
    ({"gsam_alpha": 0.1, "esam_gamma": 0.5}, "gsam_alpha", "esam_gamma"),
    ({"gsam_alpha": 0.1, "ascent_fraction": 0.5}, "gsam_alpha", "ascent_fraction"),
    ({"ascent_fraction": 0.5, "esam_gamma": 0.5}, "ascent_fraction", "esam_gamma"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_a_bad_field_is_one_line_that_names_it(fields, message):
    with pytest.raises(samon.UserError) as error:
        build(**fields)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("fields", "one", "other"), CONTRADICTIONS)
def test_contradictions_name_both_fields(fields, one, other):
    with pytest.raises(samon.UserError) as error:
        build(**fields)
    start = f"sam.{one}={fields[one]!r} is not allowed with sam.{other}={fields[other]!r}: "
    assert str(error.value).startswith(start)
    build(**fields | {one: methods.FIELDS[one].default if one != "mask" else "all"})


@pytest.mark.parametrize(
    ("m", "devices", "fits"), [(16, 2, True), (128, 2, True), (3, 2, False), (256, 2, False)]
)
def test_m_fits_a_device_or_spans_devices(m, devices, fits):
    check = functools.partial(
        methods.check, DEFAULTS | {"m": m}, batch_size=128, num_devices=devices
    )
    if fits:
        return check()
    with pytest.raises(samon.UserError, match=f"sam.m={m} must divide the 64 examples"):
        check()


def test_a_radius_that_falls_needs_a_learning_rate_that_does():
    flat = LearningRate(optax.constant_schedule(0.1), 0.1, 0.1)
    methods.check(DEFAULTS | {"rho_min": 0.1})
    methods.check(DEFAULTS | {"rho_min": 0.1}, learning_rate=COSINE)
    with pytest.raises(samon.UserError, match=r"sam\.rho_min=0\.1 .* does not fall"):
        methods.check(DEFAULTS | {"rho_min": 0.1}, learning_rate=flat)


@pytest.mark.parametrize(
    ("trainable", "fields"),
    [
        (samon.no_norm, {"mask": "only_norm"}),
        (samon.only_norm, {"mask": "no_norm"}),
        (samon.only_norm, {"sparse": "ssam_f"}),
    ],
)
def test_nothing_left_to_perturb_is_said_without_parameters(trainable, fields):
    with pytest.raises(samon.UserError, match=r"sam\.(mask|sparse)="):
        build(trainable=trainable, **fields)


@pytest.mark.parametrize("mask", ["random:0.98", "only_norm_in:nowhere", "no_norm"])
def test_nothing_left_to_perturb_is_said_when_the_state_is_made(mask):
    """A random mask of one or two entries may hold no norm parameter at all."""
    only = {"norm": False, "dense": True} if mask == "no_norm" else {"norm": True, "dense": False}
    params = {"norm": {"scale": jnp.ones(2)}, "dense": {"kernel": jnp.ones((10, 10))}}

    def trainable(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: only[path[0].key], params)

    if mask == "no_norm":
        params.pop("dense")
    method = build(trainable=trainable, mask=mask)
    with pytest.raises(samon.UserError, match=f"sam.mask='{mask}' is not allowed: .* none of"):
        jax.eval_shape(method.init, params, NOW)


def test_methods_are_described_by_what_is_not_the_default():
    def describe(**fields):
        return methods.describe(DEFAULTS | fields, epochs=10, batch_size=128)

    assert describe(variant="none", gsam_alpha=0.1) == "no perturbation"
    assert describe() == "layerwise_l2, only_norm, ρ = 0.2"
    text = describe(gsam_alpha=0.4, m=32, start=2, batch_stats="both")
    assert text == (
        "layerwise_l2, only_norm, ρ = 0.2, statistics of both passes, GSAM with α = 0.4, m = 32, "
        "perturbed in epochs 2 to 10"
    )
    values = {
        "rho_min": 0.1, "eta": 0.1, "m": 16, "start": 1, "stop": 5, "batch_stats": "perturbed",
        "reuse_prefix": False, "ascent_fraction": 0.5, "gsam_alpha": 0.1, "esam_beta": 0.5,
        "esam_gamma": 0.5, "look_every": 5, "sparse": "ssam_f", "mask": "all", "rho": 0.3,
        "variant": "fisher",
    }  # fmt: skip
    for name, value in values.items():
        assert describe(**{name: value}) != describe(), name
    for name, value in {"fisher_samples": 9, "sparsity": 0.9, "sparse_update_epochs": 5}.items():
        assert describe(sparse="ssam_f", **{name: value}) != describe(sparse="ssam_f"), name
    assert describe(sparse="ssam_d", drop=0.1) != describe(sparse="ssam_d")
    assert describe(look_every=5, look_alpha=0.1) != describe(look_every=5)


def test_every_field_has_a_default_that_its_own_check_allows_and_a_doc():
    for name, field in methods.FIELDS.items():
        field.check(name, field.default)
        assert field.doc.endswith(".")
        with pytest.raises(samon.UserError, match=name):
            field.check(name, object())
