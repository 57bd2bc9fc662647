"""Encoder-decoder Transformer (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762).

As `transformer_iwslt_de_en` of fairseq: norms after the shortcuts, sinusoidal positions, one table
of embeddings for source, target and output, ReLU, dropout on embeddings and on what is added to a
shortcut.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from samon_jax.errors import UserError
from samon_jax.models._registry import register
from samon_jax.models.seeded_dropout import drop

# Name -> layers of either side, width, width of the feed-forward layers, heads.
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (3, 128, 256, 4),
    "iwslt": (6, 512, 1024, 4),
    "base": (6, 512, 2048, 8),
}

PAD = 0  # as in samon_jax.data.text_vocabulary; BOS is 2 and EOS is 3
BOS = 2

_XAVIER = nn.initializers.xavier_uniform()
# fairseq draws queries, keys and values as one layer of three times the width.
_XAVIER_THIRD = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
_HIDDEN = -1e9  # logit of what attention must not see


def _rows_times(lhs: jax.Array, rhs: jax.Array, _: Any, **options: Any) -> jax.Array:
    # [..., a] times [a, b] with all but the last axis as one. With more axes XLA transposes a copy
    # of the output's gradient for that of the weights; on a CPU that takes as long as the product.
    rows = lhs.reshape(-1, lhs.shape[-1])
    product = jax.lax.dot_general(rows, rhs, (((1,), (0,)), ((), ())), **options)
    return product.reshape(*lhs.shape[:-1], -1)


_Dense = partial(nn.Dense, dot_general=_rows_times)


class Memory(NamedTuple):
    """What the decoder needs of a source sentence, once for all steps.

    Attributes:
      layers: for every layer of the decoder its keys and values, two of [n, source, heads, d].
      bias: 0 where the source has a word, else so low that attention is 0, [n, source].
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    bias: jax.Array


class Transformer(nn.Module):
    """Encoder-decoder Transformer with one table of embeddings.

    Initialized as fairseq's: embeddings from N(0, 1 / width) and 0 for padding, linear layers from
    Xavier's uniform distribution (queries, keys and values with its gain divided by √2), zero
    biases, norms from scale 1 and bias 0 with ε = 1e-5.

    Parameters are called `embed`, `encoder_layer_{0..}` with `self_attention`, `norm1`, `fc1`,
    `fc2`, `norm2`, and `decoder_layer_{0..}` with `self_attention`, `norm1`, `cross_attention`,
    `norm2`, `fc1`, `fc2`, `norm3`. So the expression "decoder" selects the norms of the decoder.

    Attributes:
      vocabulary: number of sub-words.
      layers: of the encoder, and of the decoder.
      width: number of channels.
      hidden: width of the feed-forward layers.
      heads: number of attention heads; divides the width.
      dropout: share of the channels that a training step drops, in [0, 1).
      dtype: dtype of the computation; parameters, softmax, norms' statistics and logits are
        float32.

    Raises:
      UserError: at the first call, if heads does not divide width.
    """

    vocabulary: int
    layers: int = 6
    width: int = 512
    hidden: int = 1024
    heads: int = 4
    dropout: float = 0.3
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Names the layers."""
        if self.width % self.heads or self.width % 2:
            raise UserError(f"heads={self.heads} and 2 must divide width={self.width}")
        self.embed = self.param("embed", _init_embeddings, (self.vocabulary, self.width))
        sizes = (self.width, self.hidden, self.heads, self.dropout, self.dtype)
        self.encoder_layer = [EncoderLayer(*sizes) for _ in range(self.layers)]
        self.decoder_layer = [DecoderLayer(*sizes) for _ in range(self.layers)]

    def __call__(
        self, source: jax.Array, target: jax.Array, seeds: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [n, target, vocabulary] of the sub-word after each of `target`.

        Args:
          source: int [n, source], ending in EOS and filled up with PAD.
          target: int [n, target], beginning with BOS and filled up with PAD.
          seeds: uint32 [n], from which every sentence draws its dropout; None drops nothing.
        """
        return self.decode(target, self.encode(source, seeds), seeds)

    def encode(self, source: jax.Array, seeds: jax.Array | None = None) -> Memory:
        """Reads source sentences, int [n, source]."""
        bias = jnp.where(source == PAD, _HIDDEN, 0.0)
        x = self._embedded(source, jnp.arange(source.shape[1]))
        x = drop(x, self.dropout, seeds, 0)
        for i, layer in enumerate(self.encoder_layer):
            x = layer(x, bias[:, None, None, :], seeds, 1 + 2 * i)
        return Memory(tuple(layer.remember(x) for layer in self.decoder_layer), bias)

    def decode(
        self, target: jax.Array, memory: Memory, seeds: jax.Array | None = None
    ) -> jax.Array:
        """Logits of whole sentences: [n, target] to [n, target, vocabulary]."""
        length = target.shape[1]
        causal = jnp.where(np.tri(length, dtype=bool), 0.0, _HIDDEN)
        x = self._embedded(target, jnp.arange(length))
        x = drop(x, self.dropout, seeds, 1000)
        for i, (layer, known) in enumerate(zip(self.decoder_layer, memory.layers, strict=True)):
            keys_values = layer.self_attention.keys_values(x)
            x = layer(x, keys_values, causal, known, memory.bias, seeds, 1001 + 3 * i)
        return self._logits(x)

    def start(self, n: int, length: int) -> tuple[tuple[jax.Array, jax.Array], ...]:
        """An empty cache of keys and values for `n` hypotheses of at most `length` sub-words."""
        zeros = jnp.zeros((n, length, self.heads, self.width // self.heads), self.dtype)
        return tuple((zeros, zeros) for _ in range(self.layers))

    def advance(
        self,
        word: jax.Array,
        position: jax.Array,
        cache: tuple[tuple[jax.Array, jax.Array], ...],
        memory: Memory,
    ) -> tuple[jax.Array, tuple[tuple[jax.Array, jax.Array], ...]]:
        """Logits of one further sub-word of every hypothesis.

        Args:
          word: int [n · width of the beam], the latest sub-word of each; those of a sentence are
            neighbours.
          position: int scalar, its position, counted from 0.
          cache: keys and values of the sub-words before it.
          memory: of the n source sentences.

        Returns:
          Logits float32 [n · width of the beam, vocabulary], and the cache with this sub-word.
        """
        x = self._embedded(word[:, None], position[None])
        length = cache[0][0].shape[1]
        seen = jnp.where(jnp.arange(length) <= position, 0.0, _HIDDEN)
        grown = []
        for layer, known, old in zip(self.decoder_layer, memory.layers, cache, strict=True):
            new = layer.self_attention.keys_values(x)
            both = jax.tree.map(
                lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, position, 1),
                old,
                new,
            )
            grown.append(both)
            x = layer(x, both, seen, known, memory.bias, None, 0)
        return self._logits(x)[:, 0], tuple(grown)

    def _embedded(self, words: jax.Array, positions: jax.Array) -> jax.Array:
        # A gather from the table; padding has the embedding 0, as in fairseq.
        x = self.embed[words] * (self.width**0.5)
        x = jnp.where((words == PAD)[..., None], 0, x)
        return (x + sinusoids(positions, self.width)).astype(self.dtype)

    def _logits(self, x: jax.Array) -> jax.Array:
        table = self.embed.astype(self.dtype)
        rows = x.reshape(-1, self.width)
        logits = jnp.einsum("rw,vw->rv", rows, table, preferred_element_type=jnp.float32)
        return logits.reshape(*x.shape[:-1], -1)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with shortcut and then norm."""

    width: int
    hidden: int
    heads: int
    dropout: float
    dtype: Any

    def setup(self) -> None:
        """Names the layers."""
        self.self_attention = Attention(self.width, self.heads, self.dtype)
        self.norm1 = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.fc1 = _Dense(self.hidden, kernel_init=_XAVIER, dtype=self.dtype)
        self.fc2 = _Dense(self.width, kernel_init=_XAVIER, dtype=self.dtype)
        self.norm2 = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)

    def __call__(
        self, x: jax.Array, bias: jax.Array, seeds: jax.Array | None, site: int
    ) -> jax.Array:
        """[n, source, width] to the same; dropout is that of `site` and the one after it."""
        y = self.self_attention(x, self.self_attention.keys_values(x), bias)
        x = self.norm1(x + drop(y, self.dropout, seeds, site))
        y = self.fc2(nn.relu(self.fc1(x)))
        return self.norm2(x + drop(y, self.dropout, seeds, site + 1))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the source and a feed-forward network."""

    width: int
    hidden: int
    heads: int
    dropout: float
    dtype: Any

    def setup(self) -> None:
        """Names the layers."""
        self.self_attention = Attention(self.width, self.heads, self.dtype)
        self.norm1 = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.cross_attention = Attention(self.width, self.heads, self.dtype)
        self.norm2 = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.fc1 = _Dense(self.hidden, kernel_init=_XAVIER, dtype=self.dtype)
        self.fc2 = _Dense(self.width, kernel_init=_XAVIER, dtype=self.dtype)
        self.norm3 = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)

    def remember(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the encoder's output."""
        return self.cross_attention.keys_values(x)

    def __call__(
        self,
        x: jax.Array,
        keys_values: tuple[jax.Array, jax.Array],
        bias: jax.Array,
        known: tuple[jax.Array, jax.Array],
        known_bias: jax.Array,
        seeds: jax.Array | None,
        site: int,
    ) -> jax.Array:
        """[n, target, width] to the same.

        Where the source holds fewer sentences than `x`, those of `x` are the hypotheses of a beam,
        and every sentence has as many; their queries go side by side.
        """
        y = self.self_attention(x, keys_values, bias)
        x = self.norm1(x + drop(y, self.dropout, seeds, site))
        beside = x.reshape(known_bias.shape[0], -1, self.width)
        y = self.cross_attention(beside, known, known_bias[:, None, None, :]).reshape(x.shape)
        x = self.norm2(x + drop(y, self.dropout, seeds, site + 1))
        y = self.fc2(nn.relu(self.fc1(x)))
        return self.norm3(x + drop(y, self.dropout, seeds, site + 2))


class Attention(nn.Module):
    """Attention with several heads; queries, keys and values are layers of their own."""

    width: int
    heads: int
    dtype: Any

    def setup(self) -> None:
        """Names the layers."""
        self.query, self.key, self.value = (
            _Dense(self.width, kernel_init=_XAVIER_THIRD, dtype=self.dtype) for _ in range(3)
        )
        self.out = _Dense(self.width, kernel_init=_XAVIER, dtype=self.dtype)

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [n, length, heads, d] of what is attended to."""
        return self._heads(self.key(x)), self._heads(self.value(x))

    def __call__(
        self, x: jax.Array, keys_values: tuple[jax.Array, jax.Array], bias: jax.Array
    ) -> jax.Array:
        """Attends from [n, queries, width]; `bias` is added to the logits [n, heads, q, k]."""
        keys, values = keys_values
        queries = self._heads(self.query(x)) * (self.width // self.heads) ** -0.5
        logits = jnp.einsum("nqhd,nkhd->nhqk", queries, keys, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits + bias).astype(self.dtype)
        self.sow("intermediates", "weights", weights)  # kept where somebody asks for it
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, values)
        return self.out(mixed.reshape(x.shape))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, self.width // self.heads)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Positions as fairseq has them: first sines, then cosines, and the first position is 1.

    Args:
      positions: int [length], counted from 0.
      width: number of channels, even.

    Returns:
      float32 [length, width].
    """
    # fairseq counts from its index of padding + 1 = 2; which number is first does not matter.
    half = width // 2
    rates = np.exp(np.arange(half) * -(np.log(10000.0) / max(half - 1, 1))).astype(np.float32)
    angles = (positions + 1).astype(jnp.float32)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], 1)


def _init_embeddings(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    table = jax.random.normal(key, shape) * shape[1] ** -0.5
    return table.at[PAD].set(0)


def _of_size(size: str, num_classes: int, dtype: Any) -> Transformer:
    layers, width, hidden, heads = SIZES[size]
    return Transformer(num_classes, layers, width, hidden, heads, dtype=dtype)


for _size in SIZES:
    register(f"transformer-{_size}", partial(_of_size, _size))
