"""The Transformer against PyTorch's layers, and sizes against sums made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samon_jax as samon
from samon_jax import models
from samon_jax.errors import UserError
from samon_jax.models.seeded_dropout import drop
from samon_jax.models.transformer import Transformer, sinusoids

VOCABULARY = 11


@pytest.fixture(scope="module")
def small():
    model = Transformer(VOCABULARY, layers=2, width=8, hidden=12, heads=2, dropout=0.5)
    words = jnp.ones((1, 1), int)
    variables = jax.jit(model.init)(jax.random.key(0), words, words)
    # Scales and biases away from 1 and 0.
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model, treedef.unflatten(leaves)


def sentences(seed, n, length, shortest=2):
    random = np.random.default_rng(seed)
    words = random.integers(4, VOCABULARY, (n, length))
    lengths = random.integers(shortest, length + 1, n)
    lengths[0] = length
    return np.where(np.arange(length) < lengths[:, None], words, 0)


@pytest.mark.parametrize(("name", "layers", "width", "hidden"), [
    ("transformer-tiny", 3, 128, 256),
    ("transformer-iwslt", 6, 512, 1024),
    ("transformer-base", 6, 512, 2048),
])  # fmt: skip
def test_sizes(name, layers, width, hidden):
    model = models.create(name, num_classes=4000)
    words = jnp.ones((1, 1), int)
    params = jax.eval_shape(model.init, jax.random.key(0), words, words)["params"]
    attention = 4 * (width * width + width)
    feed_forward = 2 * width * hidden + hidden + width
    norm = 2 * width
    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    expected = 4000 * width + layers * (encoder_layer + decoder_layer)
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


def test_the_tiny_one_has_one_and_a_half_million_parameters():
    # 4000·128 + 3·(66048 + 65920 + 512) + 3·(2·66048 + 65920 + 768), worked out on paper.
    words = jnp.ones((1, 1), int)
    model = models.create("transformer-tiny", 4000)
    params = jax.eval_shape(model.init, jax.random.key(0), words, words)
    assert sum(x.size for x in jax.tree.leaves(params)) == 512_000 + 397_440 + 596_352


def test_labels_of_the_tree_and_of_the_model_agree(small):
    model, variables = small
    words = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    labels = samon.label_params(variables["params"])
    assert labels == samon.label_module(model, words, words)
    found = jax.tree.leaves(labels)
    assert found.count("norm_scale") == found.count("norm_bias") == 2 * (2 + 3)


def test_only_norm_in_decoder_selects_three_norms_a_layer(small):
    params = small[1]["params"]
    mask = samon.only_norm_in("decoder")(params)
    assert sum(jax.tree.leaves(mask)) == 2 * 3 * 2
    assert not any(jax.tree.leaves({k: v for k, v in mask.items() if "encoder" in k}))


def _torch_attention(torch, weights, heads):
    width = weights["query"]["bias"].shape[0]
    layer = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    parts = [weights[name] for name in ("query", "key", "value")]
    state = {
        "in_proj_weight": np.concatenate([p["kernel"].T for p in parts]),
        "in_proj_bias": np.concatenate([p["bias"] for p in parts]),
        "out_proj.weight": weights["out"]["kernel"].T,
        "out_proj.bias": weights["out"]["bias"],
    }
    layer.load_state_dict({k: torch.tensor(np.array(v)) for k, v in state.items()})
    return layer


def _load(torch, layer, weights, attentions):
    """Copies everything but the attention into a layer of PyTorch."""
    for name, module in attentions.items():
        setattr(layer, name, module)
    with torch.no_grad():
        for ours, theirs in (("fc1", layer.linear1), ("fc2", layer.linear2)):
            theirs.weight.copy_(torch.tensor(np.array(weights[ours]["kernel"].T)))
            theirs.bias.copy_(torch.tensor(np.array(weights[ours]["bias"])))
        for name in [n for n in weights if n.startswith("norm")]:
            getattr(layer, name).weight.copy_(torch.tensor(np.array(weights[name]["scale"])))
            getattr(layer, name).bias.copy_(torch.tensor(np.array(weights[name]["bias"])))
    return layer.eval()


def test_logits_are_those_of_pytorchs_layers(small):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model, variables = small
    params = jax.tree.map(np.asarray, variables["params"])
    source, target = sentences(0, 3, 6), sentences(1, 3, 5)

    def embedded(words):
        # Sines and cosines written out anew.
        half = model.width // 2
        rates = 10000.0 ** (-np.arange(half) / (half - 1))
        angles = (np.arange(words.shape[1]) + 1)[:, None] * rates
        table = params["embed"] * np.sqrt(model.width) * (np.arange(VOCABULARY) > 0)[:, None]
        x = table[words] + np.concatenate([np.sin(angles), np.cos(angles)], 1)
        return torch.tensor(x, dtype=torch.float32)

    size = (model.width, model.heads, model.hidden)
    options = {"dropout": 0.0, "batch_first": True, "norm_first": False}
    hidden = torch.tensor(source == 0)
    x = embedded(source)
    for i in range(model.layers):
        weights = params[f"encoder_layer_{i}"]
        attention = {"self_attn": _torch_attention(torch, weights["self_attention"], model.heads)}
        layer = torch.nn.TransformerEncoderLayer(*size, **options)
        x = _load(torch, layer, weights, attention)(x, src_key_padding_mask=hidden)
    y, length = embedded(target), target.shape[1]
    causal = torch.tensor(~np.tri(length, dtype=bool))
    for i in range(model.layers):
        weights = params[f"decoder_layer_{i}"]
        attention = {
            "self_attn": _torch_attention(torch, weights["self_attention"], model.heads),
            "multihead_attn": _torch_attention(torch, weights["cross_attention"], model.heads),
        }
        layer = _load(torch, torch.nn.TransformerDecoderLayer(*size, **options), weights, attention)
        y = layer(y, x, tgt_mask=causal, memory_key_padding_mask=hidden)
    expected = y.detach().numpy() @ params["embed"].T
    logits = jax.jit(model.apply)(variables, source, target)
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_padding_and_the_rest_of_the_batch_change_nothing(small):
    model, variables = small
    source, target = sentences(2, 4, 6), sentences(3, 4, 5)
    seeds = jnp.arange(4, dtype=jnp.uint32)
    apply = jax.jit(model.apply)
    whole = apply(variables, source, target, seeds)
    padded = apply(
        variables, np.pad(source, ((0, 0), (0, 3))), np.pad(target, ((0, 0), (0, 2))), seeds
    )
    alone = apply(variables, source[1:2], target[1:2], seeds[1:2])
    np.testing.assert_allclose(padded[:, :5], whole, atol=1e-5)
    np.testing.assert_allclose(alone[0], whole[1], atol=1e-5)


def test_a_word_does_not_see_those_after_it(small):
    model, variables = small
    source, target = sentences(4, 2, 5, 5), sentences(5, 2, 6, 6)
    later = target.copy()
    later[:, 3:] = target[:, 3:] % 7 + 4
    apply = jax.jit(model.apply)
    first, second = apply(variables, source, target), apply(variables, source, later)
    np.testing.assert_allclose(first[:, :3], second[:, :3], atol=1e-6)
    assert not np.allclose(first[:, 3:], second[:, 3:], atol=1e-3)


def test_one_word_at_a_time_gives_the_logits_of_the_whole_sentence(small):
    model, variables = small
    source, target = sentences(6, 2, 5), sentences(7, 4, 6, 6)  # two hypotheses a sentence
    memory = model.apply(variables, source, method="encode")
    twice = jax.tree.map(lambda x: jnp.repeat(x, 2, 0), memory)
    expected = model.apply(variables, target, twice, method="decode")
    cache = model.bind(variables).start(4, 6)
    advance = jax.jit(lambda *args: model.apply(variables, *args, memory, method="advance"))
    for i in range(6):
        logits, cache = advance(target[:, i], jnp.int32(i), cache)
        np.testing.assert_allclose(logits, expected[:, i], atol=1e-5)


def test_heads_must_divide_width():
    words = jnp.ones((1, 1), int)
    with pytest.raises(UserError, match="heads=3 and 2 must divide width=8"):
        Transformer(9, width=8, heads=3).init(jax.random.key(0), words, words)


def test_positions_differ():
    table = np.asarray(sinusoids(jnp.arange(256), 128))
    apart = ((table[:, None] - table) ** 2).sum(-1) + 10 * np.eye(256)
    assert apart.min() > 0.1
    assert np.abs(table).max() <= 1


def test_initial_values():
    model = models.create("transformer-tiny", 4000)
    words = jnp.ones((1, 1), int)
    params = jax.jit(model.init)(jax.random.key(0), words, words)["params"]
    assert np.std(params["embed"][1:]) == pytest.approx(128**-0.5, rel=0.01)
    assert not params["embed"][0].any()
    layer = params["encoder_layer_0"]
    # Xavier's bound is √(6 / (in + out)); queries, keys and values as if they were one layer.
    for name, bound in (("query", (6 / 512) ** 0.5), ("out", (6 / 256) ** 0.5)):
        kernel = layer["self_attention"][name]["kernel"]
        assert np.abs(kernel).max() == pytest.approx(bound, rel=0.01)
    assert np.abs(layer["fc1"]["kernel"]).max() == pytest.approx((6 / 384) ** 0.5, rel=0.01)


def test_dropout_keeps_the_mean_and_depends_on_seed_site_and_place():
    x = jnp.ones((64, 20, 32))
    seeds = jax.random.bits(jax.random.key(0), (64,), jnp.uint32)
    kept = np.asarray(drop(x, 0.3, seeds, 1))
    assert set(np.unique(kept.round(4))) == {0.0, np.float32(1 / 0.7).round(4)}
    assert kept.mean() == pytest.approx(1, abs=0.01)
    for axis in ((1, 2), (0, 2), (0, 1)):  # no sentence, position or channel is treated better
        means = kept.mean(axis)
        sigma = (0.3 / 0.7 * means.size / x.size) ** 0.5
        assert np.abs(means - 1).max() < 5 * sigma
    assert not np.array_equal(kept, drop(x, 0.3, seeds, 2))
    # Neighbouring seeds and sites agree as often as chance has it: 0.7² + 0.3² = 0.58.
    other = np.asarray(drop(x, 0.3, seeds + np.uint32(1), 1))
    assert ((kept > 0) == (other > 0)).mean() == pytest.approx(0.58, abs=0.01)
    np.testing.assert_array_equal(drop(x[:5, :7], 0.3, seeds[:5], 1), kept[:5, :7])
