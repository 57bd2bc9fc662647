import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from jax.sharding import PartitionSpec
from tiny import assert_trees_close, batch_rows, first_calls, in_one_call, start, trained, walk

from samon_jax import methods
from samon_jax._passes import collectives
from samon_jax.methods import PLAIN, SHARP
from samon_jax.training.run import set_up


def test_one_step_is_sam_with_sgd_written_out():
    """Gradient at w, ε over the norm parameters, gradient at w + ε, SGD with weight decay."""
    run = set_up(tiny.config(data__crop_padding=0, sam__rho=0.3))
    before = start(run)
    after, metrics = trained(run)
    model = tiny.Tiny(10)
    rows = batch_rows(run)
    images = run.source.dataset.train.images[rows] / 255.0
    images = ((images - run.source.dataset.mean) / run.source.dataset.std).astype(np.float32)
    targets = 0.9 * np.eye(10)[run.source.dataset.train.labels[rows]] + 0.01

    def loss_fn(params):
        variables = {"params": params, "batch_stats": before.model_state["batch_stats"]}
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
    assert_trees_close(
        after.model_state["batch_stats"], updated["batch_stats"], rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(metrics.loss, [loss], rtol=1e-5)
    correct = (logits.argmax(1) == run.source.dataset.train.labels[rows]).mean()
    np.testing.assert_allclose(metrics.sums["correct"], [correct * 128])
    np.testing.assert_array_equal(metrics.sums["examples"], [128])
    assert (int(after.step), int(after.sums["correct"])) == (1, round(correct * 128))


def test_plain_program_is_sgd():
    """So are ρ = 0 and the variant "none", whose state is that of no method."""
    run = set_up(tiny.config(sam__rho=0.0))
    plain, _ = trained(run, kind=PLAIN)
    rho_zero, _ = trained(run)
    assert_trees_close(plain.params, rho_zero.params, rtol=1e-5, atol=1e-7)
    moved, _ = trained(set_up(tiny.config(sam__rho=1.0)))
    kernels = [state.params["middle"]["kernel"] for state in (moved, plain)]
    assert abs(np.asarray(kernels[0] - kernels[1])).max() > 1e-5
    run = set_up(tiny.config(sam__variant="none"))
    assert first_calls(run)[0].kind == PLAIN
    none, _ = trained(run)
    assert none.method_state == ()
    assert_trees_close(none.params, plain.params, rtol=1e-4, atol=1e-7)


class Slow(tiny.Tiny):
    """The tiny model with another momentum in each of its norms, as a model of one's own."""

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(len(images), -1)
        for name, momentum in (("stage1_norm", 0.8), ("stage2_norm", 0.97)):
            x = nn.Dense(16, use_bias=False, name=f"{name}_in")(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=momentum, name=name)(x))
        return nn.Dense(self.num_classes, name="head")(x)


def test_running_statistics_of_each_pass(monkeypatch):
    """Both: one update after the other, as PyTorch's module makes them, with its own momentum."""
    monkeypatch.setattr(
        "samon_jax.models.create", lambda name, classes, *, dtype: Slow(classes, dtype)
    )
    momentum = {"stage1_norm": 0.8, "stage2_norm": 0.97}
    states = {}
    for which in ("clean", "perturbed", "both"):
        # Perturbing everything moves the input of the norms, too.
        run = set_up(
            tiny.config(model="slow", sam__batch_stats=which, sam__rho=0.5, sam__mask="all")
        )
        before = jax.device_get(start(run).model_state["batch_stats"])
        states[which], _ = trained(run)
    clean, perturbed, both = (
        jax.device_get(states[which].model_state["batch_stats"])
        for which in ("clean", "perturbed", "both")
    )
    assert abs(perturbed["stage2_norm"]["mean"] - clean["stage2_norm"]["mean"]).max() > 2e-4
    for norm, a in momentum.items():
        for name, running in before[norm].items():
            # s of each pass from p = a r + (1 - a) s
            s1, s2 = ((p[norm][name] - a * running) / (1 - a) for p in (clean, perturbed))
            expected = running
            for seen in (s1, s2):
                expected = a * expected + (1 - a) * seen
            np.testing.assert_allclose(both[norm][name], expected, rtol=1e-4, atol=1e-5)
    assert_trees_close(states["both"].params, states["clean"].params, rtol=1e-4, atol=1e-7)


def test_small_m_averages_statistics_and_counts_all_examples():
    run = set_up(tiny.config(sam__m=32, data__crop_padding=0))
    state, metrics = trained(run)
    whole = set_up(tiny.config(data__crop_padding=0))
    reference, _ = trained(whole)
    # The mean over parts of a mean over equally many examples is the mean over all of them.
    assert_trees_close(
        state.model_state["batch_stats"]["stage1_norm"]["mean"],
        reference.model_state["batch_stats"]["stage1_norm"]["mean"],
        rtol=1e-4,
        atol=1e-6,
    )
    # The variance within parts is smaller than over the whole batch.
    smaller = (
        state.model_state["batch_stats"]["stage1_norm"]["var"]
        < reference.model_state["batch_stats"]["stage1_norm"]["var"]
    )
    assert smaller.mean() > 0.5
    assert int(state.sums["correct"]) == int(metrics.sums["correct"][0]) > 0
    assert int(state.sums["examples"]) == 128


def test_scan_takes_the_same_steps():
    run = set_up(tiny.config())
    together, metrics = trained(run, steps=3)
    state, losses = walk(run, 3)
    assert metrics.loss.shape == (3,)
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-4)
    assert_trees_close(together.params, state.params, rtol=1e-3, atol=1e-5)
    assert int(together.step) == 3


@pytest.mark.parametrize("variant", ["sam", "none"])
def test_shard_map_runs_the_same_step(variant):
    run = set_up(tiny.config(num_devices=2, sam__variant=variant))
    by_pmap, _ = trained(run, steps=2)
    call = in_one_call(run, 2)
    step = run.programs.of_one_device(call.kind)
    whole, split = PartitionSpec(), PartitionSpec("batch")
    sharded = jax.shard_map(
        lambda inputs, raw: step(inputs, jax.tree.map(lambda x: x[0], raw)),
        mesh=run.devices.replicated.mesh,
        in_specs=(whole, split),
        out_specs=(whole, whole),
    )
    by_shard_map, _ = jax.jit(sharded)((start(run), run.resident), call.raw)
    assert_trees_close(by_shard_map.params, by_pmap.params, rtol=1e-4, atol=1e-6)
    assert int(by_shard_map.step) == 2


def test_state_is_the_same_on_every_device():
    run = set_up(tiny.config(num_devices=4))
    state, _ = trained(run)
    for leaf in jax.tree.leaves(state):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 4
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


def test_devices_augment_differently_but_repeatably():
    run = set_up(tiny.config(num_devices=2, data__flip=True))
    # Both devices get the same examples: only the augmentation can tell them apart.
    call = first_calls(run)[0]
    raw = jax.tree.map(lambda x: np.repeat(x[:1], 2, axis=0), call.raw)
    program = run.programs.step(call.kind)
    one, again = (program((start(run), run.resident), raw)[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    alone = set_up(tiny.config(num_devices=1, batch_size=64, data__flip=True))
    raw = jax.tree.map(lambda x: x[:1], raw)
    other, _ = alone.programs.step(call.kind)((start(alone), alone.resident), raw)
    assert not np.array_equal(one.params["stem"]["kernel"], other.params["stem"]["kernel"])


def test_runs_that_differ_in_seed_and_radius_share_one_program():
    """A sweep over ρ compiles once; ρ still does what it says, and so does the seed."""
    runs = [set_up(tiny.config(**f)) for f in ({"sam__rho": 0.1}, {"sam__rho": 0.4}, {"seed": 3})]
    assert all(run.programs is runs[0].programs for run in runs)
    states = [trained(runs[0])[0]]
    with tiny.compilations() as compiled:
        states += [trained(run)[0] for run in runs[1:]]
    assert not compiled
    assert [float(state.rho) for state in states] == pytest.approx([0.1, 0.4, 0.2])
    assert [int(state.seed) for state in states] == [0, 0, 3]
    for other in states[1:]:
        kernels = [state.params["stem"]["kernel"] for state in (states[0], other)]
        assert not np.array_equal(*kernels)


def test_a_radius_that_falls_is_part_of_the_program():
    one, other = (
        set_up(tiny.config(sam__rho=rho, sam__rho_min=0.1)).programs for rho in (0.2, 0.4)
    )
    assert one is not other


def test_epoch_sums_start_anew_with_every_epoch():
    run = set_up(tiny.config(batch_size=718))
    assert run.steps_per_epoch == 2
    state, losses = start(run), []
    call, finite = first_calls(run)[0], []
    for _ in range(3):
        state, metrics = run.programs.step(call.kind)((state, run.resident), call.raw)
        losses.append(float(metrics.loss[0]))
        finite.append(bool(metrics.finite[0]))
    np.testing.assert_allclose(state.loss_sum, losses[2], rtol=1e-6)
    assert int(state.sums["examples"]) == 718
    assert finite == [True] * 3


def test_parameters_that_are_not_finite_are_noticed_at_the_end_of_an_epoch():
    """XLA's fused relu on CPU makes 0 of NaN: the loss need not tell."""
    run = set_up(tiny.config(batch_size=718))
    call, state = first_calls(run)[0], start(run)
    state.params["stem"]["kernel"] = state.params["stem"]["kernel"].at[0, 0].set(np.nan)
    finite = []
    for _ in range(2):
        state, metrics = run.programs.step(call.kind)((state, run.resident), call.raw)
        finite.append(bool(metrics.finite[0]))
    assert finite == [True, False]


def test_bfloat16_keeps_float32_parameters():
    run = set_up(tiny.config(dtype="bfloat16"))
    state, metrics = trained(run)
    for leaf in jax.tree.leaves((state.params, state.model_state["batch_stats"])):
        assert leaf.dtype == jnp.float32
    reference, _ = trained(set_up(tiny.config()))
    kernels = [s.params["head"]["kernel"] for s in (state, reference)]
    np.testing.assert_allclose(*kernels, atol=2e-2)
    assert not np.array_equal(*kernels)
    assert np.isfinite(metrics.loss).all()


def epsilon_of(params, grads, **fields):
    """What a method adds to the parameters before the second pass, for the gradients given."""
    config = tiny.config(**fields)
    method = methods.from_fields(dict(config.sam), epochs=2, steps_per_epoch=11)
    now = methods.Now(np.uint32(0), np.float32(config.sam.rho), np.int32(0))
    seen = []

    def losses(weights, batch, train=True):
        # Linear: its gradient is `grads` wherever it is taken, and its value tells where.
        product = jax.tree.map(lambda w, g: jnp.sum(w * g), weights, grads)
        jax.debug.callback(lambda w: seen.append(w), weights)
        return sum(jax.tree.leaves(product)) * jnp.ones(len(batch)), ()

    state = method.init(params, now)
    method.gradient(losses, params, state, jnp.zeros(2), now, SHARP)
    jax.effects_barrier()
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), seen[-1], params)


@pytest.mark.parametrize(
    ("mask", "selected"),
    [
        ("all", {"stem", "middle", "head", "stage1_norm", "stage2_norm"}),
        ("only_norm", {"stage1_norm", "stage2_norm"}),
        ("no_norm", {"stem", "middle", "head"}),
        ("only_norm_in:stage2", {"stage2_norm"}),
        ("random:0.75", None),
    ],
)
def test_masks_select_what_their_names_say(mask, selected):
    params = start(set_up(tiny.config())).params
    ones = jax.tree.map(jnp.ones_like, params)
    epsilon = epsilon_of(params, ones, sam__mask=mask)
    moved = {n for n, leaves in epsilon.items() if any(map(np.any, jax.tree.leaves(leaves)))}
    if selected is None:
        share = np.mean(np.concatenate([np.ravel(x) != 0 for x in jax.tree.leaves(epsilon)]))
        np.testing.assert_allclose(share, 0.25, atol=0.01)
    else:
        assert moved == selected


@pytest.mark.parametrize(
    ("fields", "reductions"),
    [({"variant": "none"}, 1), ({"variant": "sam"}, 1), ({"direction": "momentum"}, 2)],
)
def test_between_cpu_processes_a_step_waits_for_one_reduction(monkeypatch, fields, reductions):
    """Each costs milliseconds there. What follows the momentum needs its gradient before."""
    monkeypatch.setattr(collectives, "_is_slow", lambda: True)
    run = set_up(tiny.config(num_devices=2, **{f"sam__{k}": v for k, v in fields.items()}))
    raw = first_calls(run)[0].raw
    (kind,) = run.programs.parts.method.kinds
    lowered = run.programs.step(kind).lower((run.template(), run.resident), raw)
    assert lowered.as_text().count("all_reduce") == reductions
