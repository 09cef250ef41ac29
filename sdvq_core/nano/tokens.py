"""nano's tokenizer: byte-pair encoding learnt on the captions, in CLIP's own format.

Every letter stays in the vocabulary with and without `</w>`, so that an unseen word is spelt, never unknown.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from sdvq_core.nano.models import MAX_TOKENS
from sdvq_core.nano.scenes import caption, sample_scene
from sdvq_core.nano.vocabulary import COLOUR_NAMES, NanoObject

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def make_tokenizer(objects: Sequence[NanoObject], folder: Path, merges: int = 4000) -> CLIPTokenizer:
    """Learn the merges, write vocab.json and merges.txt to `folder`, load them as CLIP's tokenizer."""
    rng = random.Random("tokens")
    texts = [caption(sample_scene(rng, objects), objects, rng) for _ in range(6000)]
    texts += [f"a {name}" for o in objects for name in o.names] * 20 + list(COLOUR_NAMES) * 20
    learnt = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix=WORD_END))
    learnt.normalizer = normalizers.Lowercase()
    learnt.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    trainer = trainers.BpeTrainer(
        vocab_size=merges, initial_alphabet=alphabet, end_of_word_suffix=WORD_END, show_progress=False
    )
    learnt.train_from_iterator(texts, trainer)
    model = json.loads(learnt.to_str())["model"]
    pieces = [*alphabet, *(a + WORD_END for a in alphabet)]
    pieces += [p for p in sorted(model["vocab"], key=model["vocab"].__getitem__) if p not in set(pieces)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    merged = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merged]) + "\n", encoding="utf-8")
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
        folder, model_max_length=MAX_TOKENS, bos_token=START, eos_token=END, pad_token=END, unk_token=END
    )
    return tokenizer


def encode_texts(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids `[N, MAX_TOKENS]`, as the SDXL pipeline pads them."""
    ids: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
