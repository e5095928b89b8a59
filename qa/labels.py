"""Do the labels read as the answers that they were made from?

A tokenizer may report shifted offsets, know none of a text's words, or make one token of a whole
sentence; an answer may be longer than a window. A model then learns other texts, or none, and
nothing fails. So the labels are read back before anything is trained or scored.
"""

import unicodedata
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qa.squad import Split
from qa.windows import Windows, lowers

FEW = 5  # questions below which a share is chance
SAMPLE = 300  # labels whose tokens are read back; 20 give a share already
# Shares above which a finding is said, is a warning, and ends the program. Ordinary data stay
# below the first: of SQuAD's labels 0.2 to 0.6 % are wrong. No exact match is possible where a label is
# wrong, so that 5 % is more than any two methods differ in; 10 % of unknown tokens are two in a
# sentence; of long answers a part can still be found. With no answer in a window there is nothing to
# learn.
LIMITS = {
    "labels": (0.01, 0.05, 0.5),
    "tokens": (0.01, 0.10, 0.5),
    "windows": (0.01, 0.20, 0.99),
    "answers": (0.01, 0.20, 1.0),
}


@dataclass(frozen=True)
class LabelReport:
    """How the labels of a split's windows read. Shares are from 0 to 1, and 0 of nothing."""

    questions: int  # that have an answer
    wrong: float  # of the labelled questions: the label does not read as the answer
    unknown_tokens: float  # of the contexts' tokens: they stand for any text
    unknown_answers: float  # of the labelled questions: an unknown token is in the answer
    in_no_window: float  # of the questions with an answer: no window holds it whole
    too_long: float  # of the questions with an answer: it has more tokens than an answer may
    max_answer_length: int
    first_wrong: str  # "id: 'label' for 'answer'", or ""
    keeps_capitals: bool  # the tokenizer keeps the texts' capitals, which its vocabulary lacks


class Finding(NamedTuple):
    """What of a report a person should know."""

    about: str  # labels, tokens, windows or answers
    level: int  # 0: worth a word; 1: a warning; 2: not worth going on
    text: str  # one line; from level 1 with the remedy


@dataclass(frozen=True)
class _Labels:
    """The labels of N questions: (N,) arrays; tokens are indices into `Windows.context_ids`."""

    example: np.ndarray
    first: np.ndarray  # token
    last: np.ndarray  # inclusive
    window: np.ndarray  # the first token of the window that the label is taken from
    window_end: np.ndarray  # exclusive

    @classmethod
    def of(cls, windows: Windows) -> "_Labels":
        labelled = np.flatnonzero(windows.start_positions)
        # The first window with the answer: all of them have the same tokens for it.
        example, nth = np.unique(windows.example[labelled], return_index=True)
        rows = labelled[nth]
        window = windows.first[rows]
        begin = window - windows.context_start[rows]
        return cls(
            example,
            begin + windows.start_positions[rows],
            begin + windows.end_positions[rows],
            window,
            window + windows.count[rows],
        )


def report_labels(
    windows: Windows, split: Split, tokenizer: Any, max_answer_length: int
) -> LabelReport:
    """Read the labels of a split back, each question's from its first answer.

    White space around a text does not count, nor do combining marks behind its last letter, which
    some tokenizers drop. max_answer_length: in tokens.
    """
    labels = _Labels.of(windows)
    start = windows.context_chars[labels.first, 0]
    end = windows.context_chars[labels.last, 1]
    wrong = []
    for i, a, b in zip(labels.example.tolist(), start.tolist(), end.tolist(), strict=True):
        example = split.examples[i]
        text, answer = example.context[a:b], example.answers[0][0]
        if text != answer and _bare(text) != _bare(answer):
            wrong.append(f"{example.id}: {text[:40]!r} for {answer[:40]!r}")
    unknown = np.isin(windows.context_ids, unknown_ids(tokenizer))
    before = np.concatenate(([0], np.cumsum(unknown)))  # unknown tokens before each token
    has_unknown = before[labels.last + 1] > before[labels.first]
    count = len(labels.example)
    answered = sum(bool(example.answers) for example in split.examples)
    return LabelReport(
        questions=answered,
        wrong=max(len(wrong) / max(1, count), _misspelt(windows, split, tokenizer, labels)),
        unknown_tokens=int(unknown.sum()) / max(1, len(unknown)),
        unknown_answers=int(has_unknown.sum()) / max(1, count),
        in_no_window=1 - count / answered if answered else 0.0,
        too_long=int((labels.last - labels.first >= max_answer_length).sum()) / max(1, answered),
        max_answer_length=max_answer_length,
        first_wrong=wrong[0] if wrong else "",
        keeps_capitals=not lowers(tokenizer.backend_tokenizer)
        and _has_no_capitals(tokenizer)
        and _have_capitals(split),
    )


def unknown_ids(tokenizer: Any) -> list[int]:
    """The ids that stand for any text that a tokenizer has no token for."""
    core = tokenizer.backend_tokenizer
    own = getattr(core.model, "unk_token", None)
    return [i for i in {tokenizer.unk_token_id, own and core.token_to_id(own)} if i is not None]


def _has_no_capitals(tokenizer: Any) -> bool:
    """Has the vocabulary lower-case letters alone? (One of a script without case has neither.)"""
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    tokens = tokenizer.get_vocab().keys() - special
    return all(token == token.lower() for token in tokens) and any(map(str.islower, tokens))


def _have_capitals(split: Split) -> bool:
    return any(example.context != example.context.lower() for example in split.examples)


def _bare(text: str) -> str:
    text = text.strip()
    while text and unicodedata.category(text[-1]).startswith("M"):
        text = text[:-1]
    return text


def _letters(text: str) -> str:
    """What every tokenizer leaves of a text: letters and digits, without case and marks."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", text).casefold()))


def _misspelt(windows: Windows, split: Split, tokenizer: Any, labels: _Labels) -> float:
    """Share of labels, in a sample, whose tokens are not the characters at their offsets.

    Offsets that are late by whole tokens read well, and mislead. Judged only where the tokens
    around the label can be read back, and spell a part of the context.
    """
    core = tokenizer.backend_tokenizer
    judged = misspelt = 0
    for n in range(0, len(labels.example), max(1, len(labels.example) // SAMPLE)):
        first, behind = labels.first[n], labels.last[n] + 1
        a, b = windows.context_chars[first, 0], windows.context_chars[behind - 1, 1]
        context = split.examples[labels.example[n]].context
        low, high = max(labels.window[n], first - 5), min(labels.window_end[n], behind + 5)
        around = core.decode(windows.context_ids[low:high].tolist(), skip_special_tokens=False)
        if _letters(around) in _letters(context[max(0, a - 400) : b + 400]):
            judged += 1
            label = core.decode(windows.context_ids[first:behind].tolist())
            misspelt += _letters(label) != _letters(context[a:b])
    return misspelt / judged if judged >= 20 else 0.0


def findings(report: LabelReport) -> list[Finding]:
    """What is worth saying of a report, by LIMITS."""
    fits = "choose an encoder whose tokenizer fits these texts"
    first = f" (first: {report.first_wrong})" if report.first_wrong else ""
    case = "the vocabulary has no capitals: give --do_lower_case true"
    said = {
        "labels": (report.wrong, f"of the labels do not read as their answers{first}", fits),
        "tokens": (
            report.unknown_tokens,
            f"of the tokens are unknown; {report.unknown_answers:.1%} of the answers have one",
            case if report.keeps_capitals else fits,
        ),
        "windows": (
            report.in_no_window,
            "of the answers are in no window whole",
            "raise max_seq_length or doc_stride",
        ),
        "answers": (
            report.too_long,
            f"of the answers are longer than {report.max_answer_length} tokens",
            "raise max_answer_length",
        ),
    }
    found = []
    for about, (share, text, remedy) in said.items():
        level = sum(share > limit for limit in LIMITS[about]) - 1
        chance = about != "tokens" and level < 2 and share * report.questions < FEW
        if level >= 0 and not chance:
            advice = f"; {remedy}" if level else ""
            found.append(Finding(about, level, f"{share:.1%} {text}{advice}"))
    return found
