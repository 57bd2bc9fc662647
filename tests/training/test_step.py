import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import Mesh, PartitionSpec
from tiny import assert_trees_close, rows_of, start, trained

import samon_jax as samon
from samon_jax.data import autoaugment
from samon_jax.errors import UserError
from samon_jax.training import setup
from samon_jax.training.ascent import make_ascent
from samon_jax.training.gradient import make_ascent_init
from samon_jax.training.optimizers import make_optimizer
from samon_jax.training.state import initial_state
from samon_jax.training.step import Examples, cross_entropy, make_train_step


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    logits = np.asarray(jax.random.normal(jax.random.key(0), (5, 4)), np.float64)
    labels = np.array([0, 3, 1, 1, 2])
    target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -(target * np.log(p)).sum(1)
    actual = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_one_step_is_sam_with_sgd_written_out():
    """Gradient at w, ε over the norm parameters, gradient at w + ε, SGD with weight decay."""
    run = setup.set_up(tiny.config(data__crop_padding=0, sam__rho=0.3))
    before = start(run)
    after, metrics = trained(run)
    model = tiny.Tiny(10)
    rows = rows_of(run)[0, 0]
    images = run.dataset.train.images[rows] / 255.0
    images = ((images - run.dataset.mean) / run.dataset.std).astype(np.float32)
    targets = 0.9 * np.eye(10)[run.dataset.train.labels[rows]] + 0.01

    def loss_fn(params):
        variables = {"params": params, "batch_stats": before.batch_stats}
        logits, updated = model.apply(variables, images, True, mutable=["batch_stats"])
        return -(targets * jax.nn.log_softmax(logits)).sum(1).mean(), (updated, logits)

    params = jax.device_get(before.params)
    (loss, (updated, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    norms = ("stage1_norm", "stage2_norm")
    length = np.sqrt(sum((np.asarray(g) ** 2).sum() for n in norms for g in grads[n].values()))
    moved = {
        name: {k: v + 0.3 * grads[name][k] / length for k, v in leaves.items()}
        if name in norms
        else leaves
        for name, leaves in params.items()
    }
    sharp, _ = jax.grad(loss_fn, has_aux=True)(moved)
    lr = run.config.optimizer.lr
    expected = jax.tree.map(lambda w, g: w - lr * (g + 5e-4 * w), params, sharp)
    assert_trees_close(after.params, expected, rtol=1e-4, atol=1e-6)
    assert_trees_close(after.batch_stats, updated["batch_stats"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, [[loss]], rtol=1e-5)
    correct = (logits.argmax(1) == run.dataset.train.labels[rows]).mean()
    np.testing.assert_allclose(metrics.accuracy, [[correct]])
    assert (int(after.step), int(after.correct_sum)) == (1, round(correct * 128))


def test_plain_program_is_sgd():
    run = setup.set_up(tiny.config(sam__rho=0.0))
    plain, _ = run.programs.train_plain((start(run), run.train_set), rows_of(run))
    rho_zero, _ = trained(run)
    assert_trees_close(plain.params, rho_zero.params, rtol=1e-5, atol=1e-7)
    moved, _ = trained(setup.set_up(tiny.config(sam__rho=1.0)))
    assert (
        abs(np.asarray(moved.params["middle"]["kernel"] - plain.params["middle"]["kernel"])).max()
        > 1e-5
    )


def test_variant_none_needs_no_perturbation():
    run = setup.set_up(tiny.config(sam__variant="none"))
    state, _ = trained(run)
    plain, _ = setup.set_up(tiny.config(sam__rho=1.0)).programs.train_plain(
        (start(run).replace(ascent_state=state.ascent_state), run.train_set), rows_of(run)
    )
    assert_trees_close(state.params, plain.params, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rho", [0.5])
def test_running_statistics_of_each_pass(rho):
    states = {}
    for which in ("clean", "perturbed", "both"):
        # Perturbing everything moves the input of the norms, too.
        config = tiny.config(sam__batch_stats=which, sam__rho=rho, sam__mask="all")
        run = setup.set_up(config)
        before = start(run).batch_stats
        states[which], _ = trained(run)
    clean, perturbed = states["clean"].batch_stats, states["perturbed"].batch_stats
    mean = perturbed["stage2_norm"]["mean"] - clean["stage2_norm"]["mean"]
    assert abs(np.asarray(mean)).max() > 1e-3
    # s of each pass from p = 0.9 r + 0.1 s, then one update after the other
    batch = jax.tree.map(lambda p, r: (p - 0.9 * r) / 0.1, (clean, perturbed), (before, before))
    expected = jax.tree.map(lambda r, s1, s2: 0.9 * (0.9 * r + 0.1 * s1) + 0.1 * s2, before, *batch)
    assert_trees_close(states["both"].batch_stats, expected, rtol=1e-4, atol=1e-6)
    assert_trees_close(states["both"].params, states["clean"].params, rtol=1e-4, atol=1e-7)


def test_small_m_averages_statistics_and_counts_all_examples():
    run = setup.set_up(tiny.config(sam__m=32, data__crop_padding=0))
    state, metrics = trained(run)
    whole = setup.set_up(tiny.config(data__crop_padding=0))
    reference, _ = trained(whole)
    # The mean over parts of a mean over equally many examples is the mean over all of them.
    assert_trees_close(
        state.batch_stats["stage1_norm"]["mean"],
        reference.batch_stats["stage1_norm"]["mean"],
        rtol=1e-4,
        atol=1e-6,
    )
    # The variance within parts is smaller than over the whole batch.
    smaller = state.batch_stats["stage1_norm"]["var"] < reference.batch_stats["stage1_norm"]["var"]
    assert smaller.mean() > 0.5
    assert int(state.correct_sum) == round(float(metrics.accuracy[0, 0]) * 128)


def test_scan_takes_the_same_steps():
    run = setup.set_up(tiny.config())
    rows = rows_of(run, steps=3)
    together, metrics = run.programs.train((start(run), run.train_set), rows)
    state, losses = start(run), []
    for step in range(3):
        state, single = run.programs.train((state, run.train_set), rows[:, step : step + 1])
        losses.append(single.loss[0, 0])
    assert metrics.loss.shape == (1, 3)
    np.testing.assert_allclose(metrics.loss[0], losses, rtol=1e-4)
    assert_trees_close(together.params, state.params, rtol=1e-3, atol=1e-5)
    assert int(together.step) == 3


@pytest.mark.parametrize("variant", ["sam", "none"])
def test_shard_map_runs_the_same_step(variant):
    run = setup.set_up(tiny.config(num_devices=2, sam__variant=variant))
    by_pmap, _ = trained(run, steps=2)
    optimizer = make_optimizer(run.config, run.steps_per_epoch)
    step = make_train_step(
        run.config,
        model=setup.make_model(run.config, 10),
        optimizer=optimizer,
        ascent=make_ascent(run.config, run.steps_per_epoch),
        mean=run.dataset.mean,
        std=run.dataset.std,
        steps_per_epoch=run.steps_per_epoch,
    )

    def per_device(inputs, rows):
        state, metrics = step(inputs, rows[0])
        return state, jax.tree.map(lambda x: x[None], metrics)

    whole, split = PartitionSpec(), PartitionSpec("batch")
    sharded = jax.shard_map(
        per_device,
        mesh=Mesh(np.asarray(run.devices), ("batch",)),
        in_specs=(whole, split),
        out_specs=(whole, split),
    )
    by_shard_map, _ = jax.jit(sharded)((start(run), run.train_set), rows_of(run, steps=2))
    assert_trees_close(by_shard_map.params, by_pmap.params, rtol=1e-4, atol=1e-6)
    assert int(by_shard_map.step) == 2


def test_state_is_the_same_on_every_device():
    run = setup.set_up(tiny.config(num_devices=4))
    state, _ = trained(run)
    for leaf in jax.tree.leaves(state):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 4
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


def test_devices_augment_differently_but_repeatably():
    run = setup.set_up(tiny.config(num_devices=2, data__flip=True))
    # Both devices get the same examples: only the augmentation can tell them apart.
    rows = np.repeat(rows_of(run)[:1], 2, axis=0)
    one = run.programs.train((start(run), run.train_set), rows)[0]
    again = run.programs.train((start(run), run.train_set), rows)[0]
    jax.tree.map(np.testing.assert_array_equal, one, again)
    alone = setup.set_up(tiny.config(num_devices=1, batch_size=64, data__flip=True))
    other = alone.programs.train((start(alone), alone.train_set), rows[:1])[0]
    assert not np.array_equal(one.params["stem"]["kernel"], other.params["stem"]["kernel"])


def test_seeds_share_one_program_and_differ_in_their_result():
    first, second = (setup.set_up(tiny.config(seed=seed)) for seed in (0, 1))
    assert first.programs is second.programs
    states = [trained(first)[0]]
    with tiny.compilations() as compiled:
        states.append(trained(second)[0])
    assert not compiled
    assert [int(state.seed) for state in states] == [0, 1]
    assert not np.array_equal(*(s.params["stem"]["kernel"] for s in states))


def test_epoch_sums_start_anew_with_every_epoch():
    run = setup.set_up(tiny.config(batch_size=718))
    assert run.steps_per_epoch == 2
    state, losses = start(run), []
    for _ in range(3):
        state, metrics = run.programs.train((state, run.train_set), rows_of(run))
        losses.append(float(metrics.loss[0, 0]))
    np.testing.assert_allclose(state.loss_sum, losses[2], rtol=1e-6)


def test_bfloat16_keeps_float32_parameters():
    run = setup.set_up(tiny.config(dtype="bfloat16"))
    state, metrics = trained(run)
    for leaf in jax.tree.leaves((state.params, state.batch_stats)):
        assert leaf.dtype == jnp.float32
    reference, _ = trained(setup.set_up(tiny.config()))
    kernels = [s.params["head"]["kernel"] for s in (state, reference)]
    np.testing.assert_allclose(*kernels, atol=2e-2)
    assert not np.array_equal(*kernels)
    assert np.isfinite(metrics.loss).all()


@pytest.mark.parametrize(
    ("mask", "selected"),
    [
        ("all", {"stem", "middle", "head", "stage1_norm", "stage2_norm"}),
        ("only_norm", {"stage1_norm", "stage2_norm"}),
        ("no_norm", {"stem", "middle", "head"}),
        ("only_norm_in:stage2", {"stage2_norm"}),
    ],
)
def test_masks_select_what_their_names_say(mask, selected):
    run = setup.set_up(tiny.config())
    params = start(run).params
    ascent = make_ascent(tiny.config(sam__mask=mask), 1)(0, 0.2, 0)
    ones = jax.tree.map(jnp.ones_like, params)
    epsilon, _ = ascent.update(ones, ascent.init(params), params)
    moved = {name for name, leaves in epsilon.items() if optax.tree.norm(leaves) > 0}
    assert moved == selected


def test_random_mask_selects_its_share():
    params = start(setup.set_up(tiny.config())).params
    ascent = make_ascent(tiny.config(sam__mask="random:0.75"), 1)(0, 0.2, 0)
    epsilon, _ = ascent.update(jax.tree.map(jnp.ones_like, params), ascent.init(params), params)
    share = np.mean(np.concatenate([np.ravel(x) != 0 for x in jax.tree.leaves(epsilon)]))
    np.testing.assert_allclose(share, 0.25, atol=0.01)


def test_eta_overrides_table_9_where_it_is_used():
    params = {"w": jnp.array([1.0, -2.0])}
    grads = {"w": jnp.array([0.5, 0.5])}
    config = tiny.config(sam__variant="elementwise_l2", sam__mask="all", sam__eta=0.5)
    ascent = make_ascent(config, 1)(0, config.sam.rho, 0)
    expected = samon.perturbation(config.sam.rho, operator="elementwise", eta=0.5)
    actual, _ = ascent.update(grads, ascent.init(params), params)
    wanted, _ = expected.update(grads, expected.init(params), params)
    np.testing.assert_array_equal(actual["w"], wanted["w"])
    with pytest.raises(UserError, match="no effect"):
        make_ascent(tiny.config(sam__variant="sam", sam__eta=0.5), 1)


def test_a_mask_that_selects_nothing_lists_parameters():
    with pytest.raises(UserError, match=r"stage1_norm"):
        setup.set_up(tiny.config(sam__mask="only_norm_in:stage9"))


def test_auto_augment_comes_before_normalization():
    """The loss of one step is that of images that went through the policy."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 16).astype(np.int32)
    losses = {}
    for wanted in (False, True):
        config = tiny.config(data__crop_padding=0, data__auto_augment=wanted)
        model, optimizer = tiny.Tiny(10), make_optimizer(config, 1)
        state = initial_state(
            np.uint32(5),
            np.float32(0),
            model=model,
            optimizer=optimizer,
            init_ascent=make_ascent_init(config, None),
            image_shape=(32, 32, 3),
        )
        step = make_train_step(
            config,
            model=model,
            optimizer=optimizer,
            ascent=None,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            steps_per_epoch=1,
        )
        rows = np.arange(16, dtype=np.int32)[None, None]
        run = jax.pmap(step, "batch", in_axes=(None, 0), out_axes=(None, 0))
        _, metrics = run((state, Examples(images, labels)), rows)

        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), 0)
        seen = images
        if wanted:
            seen = np.asarray(autoaugment.auto_augment(jax.random.fold_in(key, 2), images))
        x = jnp.float32((seen / 255 - 0.5) / 0.25)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits, _ = model.apply(variables, x, True, mutable=["batch_stats"])
        target = 0.9 * np.eye(10)[labels] + 0.01
        expected = -(target * np.asarray(jax.nn.log_softmax(logits))).sum(1).mean()
        losses[wanted] = float(metrics.loss[0, 0])
        np.testing.assert_allclose(losses[wanted], expected, rtol=1e-4)
    assert losses[True] != losses[False]
