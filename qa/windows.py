"""Examples → token windows with span labels → batches.

A context longer than a window is cut into overlapping ones. Each distinct context and each
question is tokenised once; windows are ranges over those tokens and the span labels come from
searches over sorted character offsets, so that no Python loop runs over tokens. The arrays are
kept on disk under a fingerprint of data, tokenizer and settings.

Shapes: W windows, E examples, C distinct contexts, B windows in a batch, T tokens.
"""

import hashlib
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qa import UserError
from qa.checkpoint import publish, scratch
from qa.squad import Split

FORMAT = "windows 2"  # part of the fingerprint: raise it when the arrays change


@dataclass(frozen=True)
class Template:
    """How a tokenizer joins a pair: prefix question middle context suffix.

    segments: the segment ids of everything before the context, and from it on. BERT: 0 and 1;
    tokenizers of encoders without segments: 0 and 0.
    """

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    segments: tuple[int, int]
    pad_id: int

    @property
    def num_special(self) -> int:
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    @classmethod
    def of(cls, core: Any, pad_id: int) -> "Template":
        """Read off one pair, encoded by the Rust core. Raises UserError for unknown layouts."""
        pair = core.encode("a", "b")
        which = pair.sequence_ids  # None for special tokens, 0 question, 1 context
        q, c = which.index(0), which.index(1)
        q_end = max(i for i, s in enumerate(which) if s == 0) + 1
        c_end = max(i for i, s in enumerate(which) if s == 1) + 1
        template = cls(
            tuple(pair.ids[:q]),
            tuple(pair.ids[q_end:c]),
            tuple(pair.ids[c_end:]),
            (pair.type_ids[q], pair.type_ids[c]),
            pad_id,
        )
        first, second = template.segments
        other = pair.type_ids != [first] * c + [second] * (len(which) - c)
        if other or not template.prefix or not template.middle:
            raise UserError(
                "has a tokenizer that joins question and context in a way that is not supported "
                "(not as [CLS] question [SEP] context [SEP]); choose an encoder of the BERT, "
                "RoBERTa, ELECTRA, … families"
            )
        return template


def plain(tokenizer: Any) -> Any:
    """A copy of the tokenizer's Rust core without truncation and padding, which some ship with."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        raise UserError("has a tokenizer without a fast version; choose another model")
    core = type(core).from_str(core.to_str())
    core.no_truncation()
    core.no_padding()
    return core


def lowers(core: Any) -> bool:
    """Does a tokenizer's Rust core lower-case texts before it looks for its tokens?"""
    return core.normalizer is not None and "A" not in core.normalizer.normalize_str("A")


@dataclass(frozen=True)
class Windows:
    """All windows of a split. Ragged arrays are flat, with a pointer array of length n + 1."""

    template: Template
    question_ids: np.ndarray  # int32, flat
    question_ptr: np.ndarray  # (E+1,)
    context_ids: np.ndarray  # int32, flat
    context_chars: np.ndarray  # (tokens, 2): characters of the context each token stands for
    context_visible: np.ndarray  # (tokens,) whether there is more to see of it than white space
    example: np.ndarray  # (W,) index into the split's examples, ascending
    first: np.ndarray  # (W,) first context token, as an index into context_ids
    count: np.ndarray  # (W,) number of context tokens
    start_positions: (
        np.ndarray
    )  # (W,) label: token index in the window, 0 where it lacks the answer
    end_positions: np.ndarray  # (W,) inclusive
    cut_questions: np.ndarray  # indices of examples whose question was too long

    def __len__(self) -> int:
        return len(self.example)

    @cached_property
    def context_start(self) -> np.ndarray:
        """(W,) position of the first context token in the window."""
        question = np.diff(self.question_ptr)[self.example]
        return len(self.template.prefix) + question + len(self.template.middle)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(W,) tokens of each window, special ones included."""
        return self.context_start + self.count + len(self.template.suffix)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The windows `rows` padded to the longest: input_ids, attention_mask, token_type_ids.

        All (B, T) int64. Labels and places of the context are arrays of this object.
        """
        length = int(self.lengths[rows].max())
        ids = np.full((len(rows), length), self.template.pad_id, np.int64)
        mask = np.zeros_like(ids)
        segments = np.zeros_like(ids)
        prefix, middle, suffix = (
            self.template.prefix,
            self.template.middle,
            self.template.suffix,
        )
        for i, row in enumerate(rows):
            e, first, count = self.example[row], self.first[row], self.count[row]
            question = self.question_ids[self.question_ptr[e] : self.question_ptr[e + 1]]
            context = self.context_ids[first : first + count]
            tokens = np.concatenate((prefix, question, middle, context, suffix))
            begin = self.context_start[row]
            ids[i, : len(tokens)] = tokens
            mask[i, : len(tokens)] = 1
            segments[i, :begin] = self.template.segments[0]
            segments[i, begin : len(tokens)] = self.template.segments[1]
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}

    def answerable(self, rows: np.ndarray) -> np.ndarray:
        """(B, T) bool: the tokens of the windows `rows` that an answer may begin or end with.

        Those of the context, but for the white space that some tokenizers make tokens of.
        """
        nth = np.arange(self.lengths[rows].max()) - self.context_start[rows][:, None]
        inside = (nth >= 0) & (nth < self.count[rows][:, None])
        inside[inside] = self.context_visible[(self.first[rows][:, None] + nth)[inside]]
        return inside

    def characters(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(…, 2) the context's characters behind token `positions` of the windows `rows`."""
        return self.context_chars[self.first[rows] + positions - self.context_start[rows]]


def _flat(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    pointer = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(one) for one in lists], out=pointer[1:])
    return np.fromiter(itertools.chain.from_iterable(lists), np.int32, pointer[-1]), pointer


def build_windows(
    split: Split,
    tokenizer: Any,
    max_seq_length: int,
    doc_stride: int,
    cache_dir: Path | None = None,
) -> Windows:
    """All windows of a split, from the cache where they are there (without a folder: no cache).

    max_seq_length: tokens of a window, special ones included. doc_stride: tokens two neighbouring
    windows share. Raises UserError where the tokenizer has no fast version.
    """
    core = plain(tokenizer)  # copied once: that takes as long as a small encoder's answer
    template = Template.of(core, tokenizer.pad_token_id or 0)
    path = None
    if cache_dir:
        key = (FORMAT, split.fingerprint, core.to_str(), max_seq_length, doc_stride)
        fingerprint = hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
        path = cache_dir / "windows" / f"{fingerprint}.safetensors"
    arrays = _read_cache(path)
    if arrays is None:
        arrays = _build(split, core, template, max_seq_length, doc_stride)
        _write_cache(path, arrays)
    return Windows(template, **arrays)


def _build(
    split: Split, core: Any, template: Template, max_seq_length: int, doc_stride: int
) -> dict[str, np.ndarray]:
    examples = split.examples
    number = {}  # context → its index, in order of first appearance
    which = np.array([number.setdefault(e.context, len(number)) for e in examples])  # (E,)

    # A tokenizer encodes the two texts of a pair apart, so contexts and questions can be
    # encoded once each and joined later. Surrounding white space of a question says nothing.
    questions = core.encode_batch_fast(
        [e.question.strip() for e in examples], add_special_tokens=False
    )
    contexts = core.encode_batch(list(number), add_special_tokens=False)
    question_ids = [q.ids for q in questions]
    context_ids, context_ptr = _flat([c.ids for c in contexts])
    offsets = itertools.chain.from_iterable(c.offsets for c in contexts)
    context_chars = np.fromiter(
        itertools.chain.from_iterable(offsets), np.int32, 2 * len(context_ids)
    )
    context_chars = context_chars.reshape(-1, 2)
    vocabulary = np.unique(context_ids).tolist()
    white = [i for i in vocabulary if not core.decode([i], skip_special_tokens=False).strip()]
    visible = ~np.isin(context_ids, white) & (context_chars[:, 0] < context_chars[:, 1])

    # A question may take so much that the windows still move on by a quarter of what is left.
    room = max_seq_length - template.num_special  # for question and context
    longest = room - doc_stride - max(1, (room - doc_stride) // 4)
    cut = [i for i, ids in enumerate(question_ids) if len(ids) > longest]
    for i in cut:
        question_ids[i] = question_ids[i][:longest]
    question_ids, question_ptr = _flat(question_ids)

    # Windows of example e: starts 0, step, 2 step, … until one reaches the context's end.
    room = room - np.diff(question_ptr)  # (E,) for the context
    step = room - doc_stride
    tokens = np.diff(context_ptr)[which]  # (E,)
    windows = 1 + np.maximum(0, -((tokens - room) // -step))  # rounds up
    example = np.repeat(np.arange(len(examples)), windows)  # (W,)
    nth = np.arange(len(example)) - np.repeat(np.cumsum(windows) - windows, windows)
    begin = nth * step[example]  # in tokens of the context
    count = np.minimum(room[example], tokens[example] - begin)
    first = context_ptr[which[example]] + begin

    # Labels: the first token that ends behind the answer's first character, and the last token
    # that starts before its end (white space around the answer apart). One sorted search over
    # all contexts, kept apart by `base`. Without an answer, an empty one at the context's start:
    # no token is inside it.
    base = 1 + max(len(context) for context in number)
    owner = np.repeat(np.arange(len(number)), np.diff(context_ptr))
    starts, ends = (owner * base + context_chars[:, side] for side in (0, 1))
    answer = [e.answers[0] if e.answers else ("", 0) for e in examples]
    leading = [len(text) - len(text.lstrip()) for text, _ in answer]
    char_start = which * base + np.array([start for _, start in answer]) + leading
    char_end = char_start + [len(text.strip()) for text, _ in answer]
    answer_first = np.searchsorted(ends, char_start, side="right")  # (E,) into context_ids
    answer_last = np.searchsorted(starts, char_end, side="left") - 1
    label_start = answer_first[example] - first  # (W,) in tokens of the window's context
    label_end = answer_last[example] - first
    inside = (label_start >= 0) & (label_start <= label_end) & (label_end < count)
    lead = len(template.prefix) + np.diff(question_ptr)[example] + len(template.middle)
    return {
        "question_ids": question_ids,
        "question_ptr": question_ptr,
        "context_ids": context_ids,
        "context_chars": context_chars,
        "context_visible": visible,
        "example": example,
        "first": first,
        "count": count,
        "start_positions": np.where(inside, lead + label_start, 0),
        "end_positions": np.where(inside, lead + label_end, 0),
        "cut_questions": np.array(cut, np.int64),
    }


def _read_cache(path: Path | None) -> dict[str, np.ndarray] | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path) if path and path.exists() else None
    except (OSError, SafetensorError):
        return None  # torn or foreign: built anew, and replaced


def _write_cache(path: Path | None, arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path) as temporary:
            save_file(arrays, temporary)
            publish(temporary, path)
    except (OSError, UserError) as error:  # a full disk, too: what is cached can be built again
        warnings.warn(f"windows are not cached: {error}", stacklevel=2)


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch: windows of like length together, in random order.

    Shuffled, sorted by length within buckets of 128 batches, and the batches shuffled again: a
    pure function of (seed, epoch), so that a resumed run sees the same ones. The last batch of
    the sorted order may be short.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = random.permutation(len(lengths))
    bucket = 128 * batch_size
    batches = []
    for i in range(0, len(order), bucket):
        rows = order[i : i + bucket]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[j : j + batch_size] for j in range(0, len(rows), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]
