"""A vocabulary of byte pairs that is trained on the captions at hand (arXiv 1508.07909), by the ``tokenizers`` library.

Every text has ids: the first pieces are the 256 bytes. A caption's ids are a start, its pieces and an end, as with
CLIP's; 0 is padding, 1 the start and 2 the end.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mim_core import MimError

SPECIAL = ("<padding>", "<start>", "<end>")
BYTES = 256
LEAST = len(SPECIAL) + BYTES
"""Ids that every vocabulary has."""
HEADER = "byte pairs"
"""First line of a vocabulary's text; its merges are the others."""


def check_installed() -> None:
    """Raises MimError where ``tokenizers`` is missing, with what to install."""
    if importlib.util.find_spec("tokenizers") is None:
        raise MimError(
            "A vocabulary of the captions' own needs tokenizers, which is not installed: pip install "
            '"mim-multimodal[text]"'
        )


def trained(texts: Iterable[str], size: int) -> str:
    """The text of a vocabulary of at most ``size`` ids; the same for the same texts.

    Raises:
        MimError: ``tokenizers`` is not installed, or the size leaves no room for all bytes.
    """
    check_installed()
    if size < LEAST:
        raise MimError(
            f"A vocabulary of the captions' own has {LEAST} ids or more, the bytes among them; give it room: "
            f"--caption.tokenizer.vocabulary {2 * BYTES} in place of {size}."
        )
    library = importlib.import_module("tokenizers")
    learner = _empty(library)
    learner.model = library.models.BPE()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    with _one_thread():
        learner.train_from_iterator(map(plain, texts), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return "\n".join([HEADER, *(pair if isinstance(pair, str) else " ".join(pair) for pair in merges)])


def plain(text: str) -> str:
    """A caption as it is read: any case, and white space does not count."""
    return " ".join(text.lower().split())


class OwnVocabulary:
    """The vocabulary that a text of `trained` describes.

    Raises:
        MimError: ``tokenizers`` is not installed, or the text is none of a vocabulary.
    """

    def __init__(self, text: str) -> None:
        check_installed()
        self.text = text
        self.size = len(_built(text).get_vocab())

    def encode(self, text: str) -> list[int]:
        """The ids of its pieces, without start and end."""
        return list(_built(self.text).encode(plain(text)).ids)

    def decode(self, ids: Iterable[int], gap: str) -> str:
        """The text of ids; ``gap`` for each that is no piece."""
        built = _built(self.text)
        texts, pieces = list[str](), list[int]()
        for number in ids:
            if number < 0 or number >= self.size:
                texts += [built.decode(pieces), gap]
                pieces = []
            else:
                pieces.append(number)
        return " ".join(" ".join([*texts, built.decode(pieces)]).split())


@functools.lru_cache(8)
def _built(text: str) -> Any:
    """The library's tokenizer; one for each text in each process."""
    header, *lines = text.split("\n")
    pairs = [tuple(line.split(" ")) for line in lines]
    if header != HEADER or any(len(pair) != 2 for pair in pairs):
        raise MimError("data.learned is no vocabulary; leave it out, and one is trained on the captions.")
    library = importlib.import_module("tokenizers")
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    names = dict.fromkeys([*SPECIAL, *alphabet, *("".join(pair) for pair in pairs)])
    tokenizer = _empty(library)
    tokenizer.model = library.models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=pairs)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _empty(library: Any) -> Any:
    """A tokenizer of bytes, without any piece."""
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps the library in this thread: after threads of its own it would warn of every process that is forked."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
