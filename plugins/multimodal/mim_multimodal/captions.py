"""Captions as token ids: by CLIP's vocabulary of 49,408 byte pairs (arXiv 2103.00020), from open_clip, or by one that
was trained on the captions at hand."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Int
from mim_core import MimError, randomness
from torch import Tensor

from mim_multimodal import files
from mim_multimodal.items import Items
from mim_multimodal.own_vocabulary import OwnVocabulary

CLIP = 49_408
"""Ids of CLIP's vocabulary."""
START, END = 1, 2
"""Ids of the start and the end of a caption in a vocabulary of its own."""
SHORTEST = 3
"""Ids of a caption of one piece: start, piece, end."""


def check_installed() -> None:
    """Raises MimError where open_clip is missing, with what to install."""
    if importlib.util.find_spec("open_clip") is None:
        raise MimError('Captions need open_clip, which is not installed: pip install "mim-multimodal[clip]"')


@functools.cache
def load_tokenizer() -> Any:
    """open_clip's tokenizer; seconds for the first time. Forked workers have it if their parent has."""
    check_installed()
    return importlib.import_module("open_clip.tokenizer").SimpleTokenizer()


def encode_caption(text: str, length: int, own: OwnVocabulary | None = None) -> Int[Tensor, " L"]:
    """Token ids of a caption: start, its tokens, end, then 0 to the length. A longer caption is cut before its end
    token.

    Args:
        text: Any case; white space does not count.
        length: L, at least `SHORTEST`.
        own: A vocabulary of the captions' own; CLIP's by default.

    Raises:
        MimError: open_clip is not installed.
        ValueError: The length leaves no room for a word.
    """
    if length < SHORTEST:
        raise ValueError(f"a caption needs room for start, end and a word, not {length} tokens")
    if own is None:
        ids: Tensor = load_tokenizer()([text], context_length=length)[0]
        return ids.to(torch.int64)
    tokens = [START, *own.encode(text)[: length - 2], END]
    return torch.tensor([*tokens, *[0] * (length - len(tokens))], dtype=torch.int64)


def decode_caption(ids: Iterable[int], gap: str = "_", own: OwnVocabulary | None = None) -> str:
    """The text of token ids without start, end and padding; ``gap`` for each id that is no token."""
    if own is not None:
        return own.decode([i for i in ids if i not in (0, START, END)], gap)
    tokenizer = load_tokenizer()
    special = {0, tokenizer.sot_token_id, tokenizer.eot_token_id}
    pieces = [tokenizer.decode([i]) if i in tokenizer.decoder else f"{gap} " for i in ids if i not in special]
    return " ".join("".join(pieces).split())


def of_items(items: Items, most: int = 100_000) -> Iterator[str]:
    """Captions of a collection, of at most so many items, evenly over them; what cannot be read is left out, and is
    named when it is read for training."""
    step = max(1, -(-len(items) // most))
    for index in range(0, len(items), step):
        if not items.has("caption", index):
            continue
        if items.captions:
            yield from items.captions[index]
            continue
        with suppress(ValueError, OSError):
            yield files.read_text(items.root / items.file("caption", index))


def one_of(texts: Sequence[str], key: int | None) -> str:
    """The caption that a key draws of several; the first without one."""
    if key is None or len(texts) == 1:
        return texts[0]
    return texts[int(randomness.uniform(torch.tensor([key]), "one of several captions", 1) * len(texts))]
