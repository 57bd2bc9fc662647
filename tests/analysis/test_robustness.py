import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samon_jax.analysis import robustness
from samon_jax.errors import UserError


def linear(params, inputs):
    return inputs @ params["kernel"] + params["bias"]


def mlp(params, inputs):
    return jnp.tanh(inputs.reshape(len(inputs), -1) @ params["in"]) @ params["out"]


def linear_problem(classes, n=60, dimension=6):
    random = np.random.default_rng(classes)
    kernel = random.normal(size=(dimension, classes)).astype(np.float32)
    images = random.uniform(0.3, 0.7, size=(n, dimension)).astype(np.float32)
    bias = -(kernel * 0.5).sum(0)
    labels = (images @ kernel + bias).argmax(1)
    labels[:5] = (labels[:5] + 1) % classes  # wrong from the beginning
    return {"kernel": jnp.array(kernel), "bias": jnp.array(bias)}, images, labels


def mlp_problem(n=48):
    random = np.random.default_rng(3)
    params = {
        "in": jnp.array(random.normal(size=(16, 24)), jnp.float32),
        "out": jnp.array(random.normal(size=(24, 5)), jnp.float32),
    }
    images = random.uniform(size=(n, 4, 4, 1)).astype(np.float32)
    labels = np.asarray(mlp(params, images)).argmax(1)
    labels[:4] = (labels[:4] + 2) % 5
    return params, images, labels


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_linear_classifier_has_its_closed_form(norm, classes):
    # An example is robust if and only if every margin exceeds radius · (dual norm of w_y - w_j).
    # The images are so far from 0 and 1 that [0, 1] plays no part.
    params, images, labels = linear_problem(classes)
    kernel = np.asarray(params["kernel"], np.float64)
    logits = images @ kernel + np.asarray(params["bias"])
    distance = np.full(len(labels), np.inf)
    for i, y in enumerate(labels):
        for j in range(classes):
            if j != y:
                length = np.linalg.norm(kernel[:, y] - kernel[:, j], 2 if norm == "l2" else 1)
                distance[i] = min(distance[i], (logits[i, y] - logits[i, j]) / length)
    radii = [0.02, 0.05, 0.1]
    results = robustness.robust_accuracy(
        linear, params, images, labels, norm=norm, radii=radii, steps=30, batch_size=25
    )
    for radius, result in zip(radii, results, strict=True):
        assert np.abs(distance - radius).min() > 1e-5  # no example is on the edge
        # With more classes, the largest cross-entropy need not lie in the direction of the nearest
        # one, so a white-box attack may miss an example at the edge; it never finds too many.
        excess = result.robust - (distance > radius).sum()
        assert 0 <= excess <= (0 if classes == 2 else 2)
        assert 0 < result.robust < 55
        assert result.wrong == 5
        assert result.robust + result.wrong + sum(result.broken.values()) == result.examples == 60
        assert result.accuracy == result.robust / 60
        assert ("dlr" in result.broken) == (classes > 2)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_accuracy_never_rises_with_radius_steps_or_restarts(norm):
    params, images, labels = mlp_problem()
    radii = {"l2": (0.0, 0.1, 0.3), "linf": (0.0, 0.03, 0.09)}[norm]
    table = {}
    for restarts in (1, 2, 3):
        for result in robustness.robust_accuracy(
            mlp, params, images, labels, norm=norm, radii=radii, steps=(1, 2, 5), restarts=restarts,
            batch_size=16,
        ):  # fmt: skip
            table[result.radius, result.steps, restarts] = result.accuracy
    for (radius, steps, restarts), accuracy in table.items():
        for (other_radius, other_steps, other_restarts), other in table.items():
            if other_radius >= radius and other_steps >= steps and other_restarts >= restarts:
                assert other <= accuracy
    assert len(set(table.values())) >= 4  # the attacks do something


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_radius_zero_is_the_clean_accuracy(norm):
    params, images, labels = mlp_problem()
    (result,) = robustness.robust_accuracy(mlp, params, images, labels, norm=norm, radii=0.0)
    assert result.accuracy == (np.asarray(mlp(params, images)).argmax(1) == labels).mean() < 1
    assert result.robust == 44


def test_result_of_an_example_does_not_depend_on_its_batch():
    params, images, labels = mlp_problem()
    results = [
        robustness.robust_accuracy(
            mlp, params, images, labels, norm="linf", radii=(0.02, 0.05), steps=5, batch_size=size
        )
        for size in (7, 48)
    ]
    assert results[0] == results[1]


def test_perturbed_images_stay_in_the_unit_interval():
    # The loss falls with x, so the attack pulls at 0, below which the model would be wrong.
    def apply(params, x):
        below = jnp.maximum(-x, 0).sum(1) + jnp.maximum(x - 1, 0).sum(1)
        right = 1 + 0.01 * x.sum(1) - 1e6 * below
        return jnp.stack([right, jnp.zeros_like(right), jnp.full_like(right, -1)], axis=1)

    images = np.full((6, 3), 0.01, np.float32)
    images[3:] = 0
    for norm in ("l2", "linf"):
        (result,) = robustness.robust_accuracy(
            apply, {}, images, np.zeros(6, int), norm=norm, radii=0.5, steps=10
        )
        assert result.robust == 6


def test_normalization_is_applied_after_the_perturbation():
    params, images, labels = linear_problem(3)
    shifted = params | {"bias": params["bias"] + params["kernel"].sum(0) * 2}
    arguments = {"norm": "linf", "radii": (0.02, 0.05), "steps": 10}
    plain = robustness.robust_accuracy(linear, params, images, labels, **arguments)
    # kernel · (x - 2) + bias + 2 kernel is the same function of x
    moved = robustness.robust_accuracy(
        linear, shifted, images, labels, normalize=lambda x: x - 2, **arguments
    )
    assert [r.robust for r in plain] == [r.robust for r in moved]


def test_one_program_per_loss_for_all_batches_radii_and_restarts():
    traces = []

    def counting(params, inputs):
        traces.append(1)
        return mlp(params, inputs)

    params, images, labels = mlp_problem()
    robustness.robust_accuracy(
        counting, params, images, labels, norm="l2", radii=(0.05, 0.1), steps=(2, 3), restarts=2,
        batch_size=16,
    )  # fmt: skip
    assert len(traces) == 3  # clean logits, APGD-CE, APGD-DLR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l1"}, "norm='l1' does not exist"),
        ({"radii": (0.1, -0.1)}, "radius=-0.1"),
        ({"steps": 0}, "steps=0"),
        ({"restarts": 0}, "restarts=0"),
        ({"images": np.full((48, 4, 4, 1), 2.0)}, r"images lie in \[2.0, 2.0\]"),
        ({"images": np.zeros((0, 4, 4, 1)), "labels": np.zeros(0, int)}, "labels is empty"),
        ({"labels": np.zeros(47, int)}, "labels has 47 entries; there are 48 images"),
        ({"params": {"in": jnp.full((16, 24), jnp.nan), "out": jnp.zeros((24, 5))}}, "not finite"),
    ],
)
def test_bad_arguments(change, message):
    params, images, labels = mlp_problem()
    arguments = {"params": params, "images": images, "labels": labels, "norm": "l2"} | change
    with pytest.raises(UserError, match=message):
        robustness.robust_accuracy(mlp, **arguments)


def test_jax_arrays_are_accepted():
    params, images, labels = mlp_problem(8)
    (result,) = robustness.robust_accuracy(
        mlp, params, jnp.asarray(images), jnp.asarray(labels), norm="linf", radii=0.01, steps=2
    )
    assert result.examples == 8
    assert isinstance(jax.tree.leaves(params)[0], jax.Array)
