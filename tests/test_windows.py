"""Windows against the tokenizers' own pair encoding, labels against a search by eye."""

from dataclasses import replace

import numpy as np
import pytest

from qa import squad
from qa.squad import Example, Split
from qa.windows import build_windows, epoch_batches
from tests.conftest import TEXT, TOKENIZERS, toy_split, wordpiece


def text_split():
    """Questions and contexts with accents, other scripts, emoji, odd spaces, long and short."""
    contexts = [" ".join(TEXT), TEXT[0], TEXT[1] + "  \n " + TEXT[0], "x", " ".join(TEXT[1:9])]
    examples = []
    for n, context in enumerate(contexts * 2):
        start = (7 * n) % max(1, len(context) - 3)
        while not context[start : start + 3 + n].strip():
            start += 1
        answer = context[start : start + 3 + n]
        question = "  Which – one? " + TEXT[n % 2][: 5 + 6 * n]
        examples.append(Example(f"q{n}", "t", context, question, ((answer, start),)))
    return Split("text", examples, "text")


def pair_encoding(tokenizer, examples, max_seq_length, doc_stride):
    return tokenizer(
        [e.question.strip() for e in examples],
        [e.context for e in examples],
        truncation="only_second",
        max_length=max_seq_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )


def assert_same_windows(windows, encoded, rows):
    assert len(windows) == len(encoded["input_ids"])
    assert windows.example.tolist() == encoded["overflow_to_sample_mapping"]
    for row in rows:
        batch = windows.batch(np.array([row]))
        assert batch["input_ids"][0].tolist() == encoded["input_ids"][row]
        assert batch["token_type_ids"][0].tolist() == encoded["token_type_ids"][row]
        first, count = windows.context_start[row], windows.count[row]
        chars = windows.characters(np.full(count, row), np.arange(first, first + count))
        offsets = encoded["offset_mapping"][row][first : first + count]
        assert [tuple(pair) for pair in chars.tolist()] == offsets


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("length", "stride"), [(384, 128), (96, 8), (100, 0)])
def test_equal_to_the_pair_encoding(kind, length, stride):
    tokenizer, split = TOKENIZERS[kind](), text_split()
    windows = build_windows(split, tokenizer, length, stride)
    encoded = pair_encoding(tokenizer, split.examples, length, stride)
    assert_same_windows(windows, encoded, range(len(windows)))
    if length < 384:
        assert len(windows) > 1.5 * len(split.examples)


def test_equal_to_the_pair_encoding_on_squad(squad_dev):
    from qa.model import load_base

    tokenizer = load_base("minilm-l6").tokenizer
    split = squad.draw(squad_dev, 1500, 0)
    windows = build_windows(split, tokenizer, 384, 128)
    encoded = pair_encoding(tokenizer, split.examples, 384, 128)
    assert_same_windows(windows, encoded, range(len(windows)))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_labels_cover_the_answer_exactly_or_point_to_cls(kind):
    split = text_split()
    windows = build_windows(split, TOKENIZERS[kind](), 96, 16)
    inside = 0
    for row in range(len(windows)):
        example = split.examples[windows.example[row]]
        text, a = example.answers[0]
        # the answer's edges without its surrounding white space, as tokens see them
        b = a + len(text.rstrip())
        a += len(text) - len(text.lstrip())
        first, count = windows.context_start[row], windows.count[row]
        offsets = windows.characters(np.full(count, row), np.arange(first, first + count))
        touching = [i for i, (s, e) in enumerate(offsets) if s < b and e > a]
        start, end = windows.start_positions[row], windows.end_positions[row]
        if touching and offsets[0][0] <= a and offsets[-1][1] >= b:
            assert (start, end) == (first + touching[0], first + touching[-1])
            inside += 1
        else:
            assert (start, end) == (0, 0)
    assert inside >= 10


def test_questions_without_answers_get_the_same_windows_without_labels():
    split, tokenizer = text_split(), wordpiece()
    bare = [replace(example, answers=()) for example in split.examples]
    asked = build_windows(Split("asked", bare, "asked"), tokenizer, 96, 16)
    labelled = build_windows(split, tokenizer, 96, 16)
    assert not asked.start_positions.any() and not asked.end_positions.any()
    for name, value in vars(labelled).items():
        if isinstance(value, np.ndarray) and not name.endswith("_positions"):
            assert np.array_equal(value, getattr(asked, name)), name


def test_a_question_longer_than_its_room_is_cut_and_named():
    split = toy_split(4)
    long = Example("long", "t", split.examples[0].context, "boka " * 500, (("x", 0),))
    answer = long.context[:4]
    long = Example("long", "t", long.context, long.question, ((answer, 0),))
    split = Split("toy", [*split.examples, long], "toy")
    windows = build_windows(split, wordpiece(), 64, 16)
    assert [split.examples[i].id for i in windows.cut_questions] == ["long"]
    assert windows.lengths.max() <= 64
    rows = windows.example == 4
    assert windows.count[rows].min() > 0 and rows.sum() < 20
    covered = {t for f, c in zip(windows.first[rows], windows.count[rows]) for t in range(f, f + c)}
    assert len(covered) == max(covered) - min(covered) + 1  # every token of the context is seen


def test_windows_are_cached_and_a_torn_cache_is_built_anew(tmp_path, monkeypatch):
    import qa.windows

    split, tokenizer = toy_split(6), wordpiece()
    first = build_windows(split, tokenizer, 64, 16, tmp_path)
    built = qa.windows._build
    monkeypatch.setattr(qa.windows, "_build", None)
    again = build_windows(split, tokenizer, 64, 16, tmp_path)
    for name, value in vars(first).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, getattr(again, name))
    monkeypatch.setattr(qa.windows, "_build", built)
    for other in (
        build_windows(toy_split(6, seed=1), tokenizer, 64, 16, tmp_path),
        build_windows(split, TOKENIZERS["unigram"](), 64, 16, tmp_path),
        build_windows(split, tokenizer, 48, 16, tmp_path),
    ):
        assert not np.array_equal(other.context_ids, first.context_ids) or other.lengths.max() <= 48
    files = list((tmp_path / "windows").iterdir())
    assert len(files) == 4
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    mended = build_windows(split, tokenizer, 64, 16, tmp_path)
    assert np.array_equal(mended.context_ids, first.context_ids)


def test_batches_are_a_pure_function_of_seed_and_epoch_and_of_like_length():
    lengths = np.random.default_rng(0).integers(20, 384, 5003)
    first = epoch_batches(lengths, 8, seed=1, epoch=3)
    for other, same in (((1, 3), True), ((1, 4), False), ((2, 3), False)):
        batches = epoch_batches(lengths, 8, *other)
        assert same == all(np.array_equal(a, b) for a, b in zip(first, batches))
    assert sorted(np.concatenate(first).tolist()) == list(range(5003))
    assert len(first) == 626 and all(len(rows) <= 8 for rows in first)
    padded = sum(lengths[rows].max() * len(rows) for rows in first)
    assert lengths.sum() / padded > 0.97
    firsts = [lengths[rows].mean() for rows in first]
    assert abs(np.corrcoef(np.arange(len(firsts)), firsts)[0, 1]) < 0.1  # not sorted over the epoch
