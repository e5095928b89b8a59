"""The vectorised search against a brute-force one."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qa import spans
from qa.squad import Split
from qa.windows import build_windows
from tests.conftest import TOKENIZERS, toy_split


def brute_force(windows, contexts, start, end, max_answer_length, n_best):
    """{example: [(score, characters)]}, best first, by looking at every pair of tokens."""
    best = {}
    for w in range(len(windows)):
        first, count = windows.context_start[w], windows.count[w]
        context = contexts[windows.example[w]]
        chars = windows.characters(np.full(count, w), np.arange(first, first + count)).tolist()
        shown = {first + i for i, (a, b) in enumerate(chars) if context[a:b].strip()}
        for s in range(first, first + count):
            for e in range(s, min(s + max_answer_length, first + count)):
                if not {s, e} <= shown:
                    continue
                a, b = chars[s - first][0], chars[e - first][1]
                score = np.float32(start[w, s]) + np.float32(end[w, e])
                spans_of = best.setdefault(int(windows.example[w]), {})
                spans_of[a, b] = max(score, spans_of.get((a, b), -np.inf))
    return {
        example: sorted(((-score, chars) for chars, score in found.items()))[:n_best]
        for example, found in best.items()
    }


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    max_answer_length=st.integers(1, 40),
    n_best=st.integers(1, 30),
    max_seq_length=st.integers(20, 64),
    tokenizer=st.sampled_from([make() for make in TOKENIZERS.values()]),
    space=st.sampled_from([" ", "   ", " \n"]),
)
def test_same_answers_as_brute_force(
    seed, max_answer_length, n_best, max_seq_length, tokenizer, space
):
    toy = toy_split(3, seed=seed % 100, words=20).examples
    contexts = [example.context.replace(" ", space) for example in toy]
    examples = [replace(e, context=text, answers=()) for e, text in zip(toy, contexts)]
    split = Split("toy", examples, "toy")
    windows = build_windows(split, tokenizer, max_seq_length, doc_stride=6)
    random = np.random.default_rng(seed)
    length = int(windows.lengths.max())
    start, end = random.normal(size=(2, len(windows), length)).astype(np.float32)
    rows = random.permutation(len(windows))
    found = spans.window_spans(
        torch.from_numpy(start[rows]), torch.from_numpy(end[rows]),
        torch.from_numpy(windows.answerable(rows)), max_answer_length, n_best,
    )  # fmt: skip
    kept = spans.question_spans(windows, rows, *(f.numpy() for f in found), n_best)
    answers = spans.answers(split.examples, *kept)
    expected = brute_force(windows, contexts, start, end, max_answer_length, n_best)
    for i, example in enumerate(split.examples):
        got = answers[example.id]
        assert [(-span.score, (span.start, span.end)) for span in got] == expected[i]
        assert all(span.text == example.context[span.start : span.end] for span in got)
        assert all(span.text.strip() for span in got)
        assert abs(sum(span.probability for span in got) - 1) < 1e-5
        assert got == sorted(got, key=lambda span: -span.probability)


def test_spans_stay_where_answers_may_be_and_within_the_length():
    """The highest logits stand on the question and on padding, and must not matter."""
    start = torch.zeros(1, 10)
    end = torch.zeros(1, 10)
    start[0, 1] = end[0, 2] = end[0, 9] = 100.0
    start[0, 5], start[0, 6], end[0, 8] = 3.0, 1.0, 5.0
    context = torch.tensor([[4 <= token <= 8 for token in range(10)]])
    first, last, score = spans.window_spans(start, end, context, max_answer_length=3, n_best=50)
    real = torch.isfinite(score)[0]
    assert real.sum() == 3 + 3 + 3 + 2 + 1  # tokens 4 to 8, up to three of them
    assert (first[0, real] >= 4).all() and (last[0, real] <= 8).all()
    assert ((last - first)[0, real] < 3).all()
    assert (first[0, 0], last[0, 0], score[0, 0]) == (6, 8, 6.0)  # (5, 8) would be too long
