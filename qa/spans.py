"""Span logits → answer text, n-best.

Two steps, both without a loop over span pairs: the best spans of each window, from a band of
(start, length) scores on the device the logits are on; then the best spans of each question over
all its windows, by one sort.

B windows in a batch, T tokens, D longest answer in tokens, N spans kept.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qa.squad import Example
from qa.windows import Windows


class Span(NamedTuple):  # there are many: a tuple is made five times as fast as a dataclass
    """An answer: context[start:end], its score (start + end logit) and its share of the n-best."""

    text: str
    start: int
    end: int
    score: float
    probability: float


def window_spans(
    start_logits: Tensor,
    end_logits: Tensor,
    answerable: Tensor,
    max_answer_length: int,
    n_best: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best spans of each window.

    start_logits, end_logits: (B, T). answerable: (B, T) bool, where a span may begin and end.
    Returns start and end positions (inclusive) and scores, each (B, N), best first; where a
    window has fewer than N spans the rest score -inf.
    """
    tokens = start_logits.shape[1]
    longest = min(max_answer_length, tokens)
    start = start_logits.float().masked_fill(~answerable, -torch.inf)
    end = end_logits.float().masked_fill(~answerable, -torch.inf)
    end = torch.nn.functional.pad(end, (0, longest - 1), value=-torch.inf)
    band = start[:, :, None] + end.unfold(1, longest, 1)  # (B, T, D): span (t, t + d)
    scores, flat = band.flatten(1).topk(min(n_best, tokens * longest))
    first = flat // longest
    return first, first + flat % longest, scores


def question_spans(
    windows: Windows,
    rows: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    scores: np.ndarray,
    n_best: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best spans of each question over all its windows.

    rows: (M,) window indices. starts, ends, scores: (M, N) from `window_spans`. A stretch of
    text seen by two windows counts once, with its better score. Returns for each kept span the
    example (K,), its characters (K, 2) and its score (K,), sorted by example, best first.
    """
    keep = np.isfinite(scores)
    window = np.broadcast_to(rows[:, None], scores.shape)[keep]
    score = scores[keep]
    chars = np.stack(
        (
            windows.characters(window, starts[keep])[:, 0],
            windows.characters(window, ends[keep])[:, 1],
        ),
        axis=1,
    )
    example = windows.example[window]
    order = np.lexsort((chars[:, 1], chars[:, 0], -score, example))
    example, chars, score = example[order], chars[order], score[order]
    _, distinct = np.unique(
        np.column_stack((example, chars)), axis=0, return_index=True
    )  # the first of equals is the best of them
    distinct.sort()
    example, chars, score = example[distinct], chars[distinct], score[distinct]
    rank = np.arange(len(example)) - np.searchsorted(example, example, side="left")
    best = rank < n_best
    return example[best], chars[best], score[best]


def answers(
    examples: Sequence[Example], example: np.ndarray, chars: np.ndarray, score: np.ndarray
) -> dict[str, list[Span]]:
    """The texts: {id: spans, best first}, from the arrays of `question_spans`."""
    found: dict[str, list[Span]] = {e.id: [] for e in examples}
    first = np.searchsorted(example, example, side="left")  # of each question's spans, its best
    share = np.exp(score - score[first])
    share /= np.bincount(example, share)[example] if len(example) else 1
    columns = [*chars.T.tolist(), score.tolist(), share.tolist()]
    bounds = [*np.unique(first).tolist(), len(example)]
    for begin, end in itertools.pairwise(bounds):
        one = examples[example[begin]]
        rows = zip(*(column[begin:end] for column in columns))
        found[one.id] = [Span(one.context[row[0] : row[1]], *row) for row in rows]
    return found


def best_texts(found: Mapping[str, Sequence[Span]]) -> dict[str, str]:
    """{id: text of the best span}, "" where there is none."""
    return {id: best[0].text if best else "" for id, best in found.items()}
