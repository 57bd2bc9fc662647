"""Sub-words: a joint SentencePiece vocabulary of both languages, made from the training text."""

import hashlib
import io
import logging
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from samon_jax.data.cache import cache_dir, write_whole
from samon_jax.data.text_files import Pairs
from samon_jax.errors import UserError

_log = logging.getLogger(__name__)

PAD, UNK, BOS, EOS = range(4)


class Vocabulary:
    """Sentences to sub-words and back (Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226).

    Attributes:
      model: the serialized SentencePiece model, which is all there is to it.
      size: number of sub-words, the four special ones (`PAD`, `UNK`, `BOS`, `EOS`) included.
      digest: 16 hex digits that tell this vocabulary from others.
    """

    def __init__(self, model: bytes) -> None:
        """Loads a model that training has made.

        Raises:
          RuntimeError: it is none, or empty.
        """
        self.model = model
        self.digest = hashlib.sha256(model).hexdigest()[:16]
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = int(self._processor.vocab_size())
        if not self.size:  # of which SentencePiece says nothing until it is used
            raise RuntimeError("it is empty")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Sub-words of every line, without `BOS` and `EOS`."""
        return self._processor.encode(list(lines), out_type=int)

    def decode(self, rows: Iterable[Sequence[int] | np.ndarray]) -> list[str]:
        """The lines that sub-words spell; what follows an `EOS`, and special ones, are left out."""
        lines = []
        for row in rows:
            ids = [int(i) for i in row]
            ids = ids[: ids.index(EOS)] if EOS in ids else ids
            lines.append(self._processor.decode([i for i in ids if i not in (PAD, BOS)]))
        return lines

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """How sub-words look; `▁` is a blank."""
        return [self._processor.id_to_piece(int(i)) for i in ids]


def make_vocabulary(pairs: Pairs, size: int) -> Vocabulary:
    """The vocabulary of a training text, from the cache if it was made before.

    It is the same to the byte on every machine: training is sequential and knows nothing but the
    text, and the cached file is named by the text, the size and SentencePiece's version.

    Args:
      pairs: the training text, both sides of which are used.
      size: number of sub-words, the four special ones included.

    Returns:
      The vocabulary.

    Raises:
      UserError: the text does not hold that many sub-words, or has more characters than that.

    Example:
      >>> lines = ["ein Haus am See", "a house by the lake"]
      >>> vocabulary = make_vocabulary(Pairs(lines[:1], lines[1:]), size=30)
      >>> vocabulary.decode(vocabulary.encode(["ein house"]))
      ['ein house']
    """
    digest = hashlib.sha256(f"{sentencepiece.__version__} bpe {size}\n".encode())
    for side in pairs:
        digest.update("\n".join(side).encode() + b"\0")
    path = cache_dir() / f"sentencepiece-{digest.hexdigest()[:32]}.model"
    try:
        return Vocabulary(path.read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError) as error:
        _log.warning("cache %s cannot be read (%s); training it again", path, error)
    model = _train([*pairs.source, *pairs.target], size)
    try:
        write_whole(path, lambda file: file.write(model))
    except OSError as error:
        _log.warning("cache %s cannot be written (%s); the next run trains again", path, error)
    return Vocabulary(model)


def _train(lines: list[str], size: int) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            character_coverage=1.0,
            max_sentence_length=1 << 20,  # bytes; longer lines would be left out in silence
            num_threads=1,
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"translation.vocabulary={size} is not allowed; it must be a number of sub-words that "
            f"the training text ({len(lines)} lines) can fill and not fewer than its characters: "
            f"{_reason(error)}"
        ) from error
    return model.getvalue()


def _reason(error: RuntimeError) -> str:
    """The last sentence of a message of SentencePiece, in one line and without its source file."""
    text = " ".join(str(error).split())
    return text.rpartition("] ")[2] or text
