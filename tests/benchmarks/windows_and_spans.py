"""How fast are window building and span decoding, beside the straightforward Python versions?

    python -m tests.benchmarks.windows_and_spans [--rounds 5]

On all of SQuAD dev with the MiniLM-L6 tokenizer, in turn, in one process; medians of the ratios.
The straightforward versions are those of the usual question-answering scripts: the tokenizer on
(question, context) pairs with a loop over tokens for the labels, and 20 × 20 best starts and ends
in Python. Both pairs are checked to give the same result.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from qa import spans, squad
from qa.model import load_base, num_cores
from qa.windows import Windows, build_windows
from tests.benchmarks import read_questions


def straightforward_windows(split: squad.Split, tokenizer) -> tuple[list, list]:
    """Pair encoding, and labels by walking over the tokens."""
    encoded = tokenizer(
        [e.question.strip() for e in split.examples],
        [e.context for e in split.examples],
        truncation="only_second",
        max_length=384,
        stride=128,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    labels = []
    for i, offsets in enumerate(encoded["offset_mapping"]):
        text, start = split.examples[encoded["overflow_to_sample_mapping"][i]].answers[0]
        end = start + len(text)
        sequence = encoded.sequence_ids(i)
        first, last = sequence.index(1), len(sequence) - 1 - sequence[::-1].index(1)
        if offsets[first][0] > start or offsets[last][1] < end:
            labels.append((0, 0))
            continue
        while first < len(offsets) and offsets[first][0] <= start:
            first += 1
        while offsets[last][1] >= end:
            last -= 1
        labels.append((first - 1, last + 1))
    return encoded["input_ids"], labels


def straightforward_spans(windows: Windows, examples, start, end, n_best=20, longest=30) -> dict:
    """The n best starts × the n best ends of each window in Python, then the n best answers.

    {id: [(text, score, probability)]}, best first, as the usual scripts write them.
    """
    found: dict[str, list] = {e.id: [] for e in examples}
    offsets = [
        windows.context_chars[first : first + count].tolist()
        for first, count in zip(windows.first, windows.count)
    ]
    for w in range(len(windows)):
        first, stop = windows.context_start[w], windows.context_start[w] + windows.count[w]
        for s in np.argsort(start[w])[-1 : -n_best - 1 : -1].tolist():
            for e in np.argsort(end[w])[-1 : -n_best - 1 : -1].tolist():
                if first <= s <= e < stop and e - s < longest:
                    chars = offsets[w][s - first][0], offsets[w][e - first][1]
                    found[examples[windows.example[w]].id].append((start[w][s] + end[w][e], chars))
    best = {}
    for example in examples:
        candidates = sorted(found[example.id], reverse=True)[:n_best]
        scores = np.array([score for score, _ in candidates])
        share = np.exp(scores - scores.max()) if candidates else scores
        share = share / share.sum()
        best[example.id] = [
            (example.context[a:b], score, p) for (score, (a, b)), p in zip(candidates, share)
        ]
    return best


def decode(windows: Windows, examples, start, end) -> dict:
    """qa.spans on the same logits, in batches as the program does."""
    parts = []
    for i in range(0, len(windows), 32):
        rows = np.arange(i, min(i + 32, len(windows)))
        answerable = torch.from_numpy(windows.answerable(rows))
        logits = (torch.from_numpy(a[rows, : answerable.shape[1]]) for a in (start, end))
        parts.append((rows, *(f.numpy() for f in spans.window_spans(*logits, answerable, 30, 20))))
    columns = [np.concatenate(column) for column in zip(*parts)]
    return spans.answers(examples, *spans.question_spans(windows, *columns, 20))


def timed(function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(num_cores())
    tokenizer = load_base("minilm-l6").tokenizer
    split = read_questions("dev")
    seconds: dict[str, list] = {"windows": [], "spans": []}
    for _ in range(rounds):
        (ids, labels), slow = timed(straightforward_windows, split, tokenizer)
        windows, fast = timed(build_windows, split, tokenizer, 384, 128)
        seconds["windows"].append((slow, fast))
    same = sum(
        (int(s), int(e)) == label
        for s, e, label in zip(windows.start_positions, windows.end_positions, labels)
    )
    equal = all(
        windows.batch(np.array([i]))["input_ids"][0].tolist() == ids[i] for i in range(len(ids))
    )
    print(f"{len(windows)} windows, the same tokens: {equal}, the same labels: {same}")
    # Logits with a peak, as trained models give them, so that the best answers are distinct.
    start, end = np.random.default_rng(0).normal(size=(2, len(windows), 384)).astype(np.float32)
    for row in range(len(windows)):
        middle = windows.context_start[row] + windows.count[row] // 2
        start[row, middle] += 8
        end[row, middle : middle + 2] += 8
    for _ in range(rounds):
        plain, slow = timed(straightforward_spans, windows, split.examples, start, end)
        found, fast = timed(decode, windows, split.examples, start, end)
        seconds["spans"].append((slow, fast))
    agree = sum(found[id][0].text == best[0][0] for id, best in plain.items() if best)
    print(f"{len(plain)} questions, the same best answer: {agree}")
    for name, pairs in seconds.items():
        slow, fast = (statistics.median(column) for column in zip(*pairs))
        ratio = statistics.median(s / f for s, f in pairs)
        print(f"{name}: straightforward {slow:.2f} s, qa {fast:.2f} s, ratio {ratio:.1f}")


if __name__ == "__main__":
    main()
