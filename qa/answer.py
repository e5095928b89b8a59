"""Ask a trained model.

    python -m qa.answer --run RUN --question Q --context C
    Answerer.load(RUN).answer(question=…, context=…)    texts, or lists of them

RUN is a run of this program, or any plain folder or hub model with a trained span head.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from qa import UserError, study


class Answer(NamedTuple):
    """text = context[start:end], and how the model weighs it, from 0 to 1.

    score: the span's share of the probability of the `n_best_size` best spans of the whole
    context (20; a run brings its own), however many answers up to there are asked for.
    It is not calibrated, and does not say whether the context answers the question at all.
    """

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Answerer:
    """A model that answers questions, made by `Answerer.load`. It computes in fp32."""

    model: Any  # model.SpanModel
    tokenizer: Any
    settings: study.Settings  # those that windows and spans are made with
    # What `loop.predict` asks of an Accelerator. A real one would settle the precision of every
    # later Accelerator in the caller's program.
    process: Any

    @classmethod
    def load(cls, name: str | Path) -> "Answerer":
        """From a run's folder, a folder saved by `save_pretrained`, a hub id or a short name.

        A run keeps its own windows; other models get windows of 384 tokens, or of as many as they
        have positions for, that share a third. Uses a GPU where there is one. Raises UserError,
        also where the span head was never trained.
        """
        import torch

        from qa import methods, runs
        from qa.model import Architecture, attach, load_base
        from qa.pretrained import MODEL_FILES, SHORT_NAMES, is_run

        name = str(name)
        folder = study.expand_path(name)
        if name.count("/") > 1 and not folder.exists():  # no hub's id has two
            raise UserError(f"{name}: there is no such folder; give a run's or a model's")
        local = name not in SHORT_NAMES and folder.is_dir()
        inside = sorted(folder.glob("*/config.json")) if local else []
        if local and is_run(folder):
            model, base, settings = runs.load_run(folder)
        elif inside and not any(map(Path.exists, (folder / file for file in MODEL_FILES))):
            raise UserError(f"{name}: holds several folders; give one: {inside[0].parent}")
        else:
            base = load_base(name)
            length = min(384, Architecture.of(base.model).positions or 384)
            settings = study.Settings(
                method="pretrained", max_seq_length=length, doc_stride=length // 3
            )
            model = attach(base, methods.get_method("pretrained"), {}, length)
        if not base.head_trained and not any(map(model.is_head, model.trainable())):
            raise UserError(
                f"{name}: its span head was never trained and would answer at random; train one "
                "(train.py --method lora …) and give that run"
            )
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        process = SimpleNamespace(
            device=device,
            process_index=0,
            num_processes=1,
            mixed_precision="no",
            autocast=nullcontext,
        )
        return cls(model.to(device), base.tokenizer, settings, process)

    def answer(
        self, *, question: str | list[str], context: str | list[str], n_best: int = 1
    ) -> Answer | list[Answer] | list[list[Answer]]:
        """The best answer to each question, or a list of the `n_best` ones, best first.

        Two texts give one result; a list gives a list of results, and a single text beside it
        belongs to each of its items. Contexts may be of any length; an answer has at most
        `max_answer_length` tokens (30). Where a context has fewer spans than `n_best`, so has the
        list. A question that leaves its context too little room is cut, with a warning. Raises
        UserError for anything but texts.
        """
        import numpy as np

        from qa import loop
        from qa.labels import unknown_ids
        from qa.squad import Example, Split
        from qa.windows import build_windows

        settings = self.settings
        limits = study.FIELDS["n_best_size"].metadata
        n_best = study.check_value("n_best", n_best, int, limits, "the call")
        questions, contexts = _texts(question, "question"), _texts(context, "context")
        if isinstance(question, str):
            questions *= len(contexts)
        elif isinstance(context, str):
            contexts *= len(questions)
        if len(questions) != len(contexts):
            raise UserError(
                f"context: {len(contexts)} contexts for {len(questions)} questions; give as many, "
                "or a single text for all"
            )
        if not questions:
            return []
        pairs = zip(questions, contexts)
        examples = [Example(str(i), "", text, asked, ()) for i, (asked, text) in enumerate(pairs)]
        split = Split("asked", examples, "asked")
        windows = build_windows(split, self.tokenizer, settings.max_seq_length, settings.doc_stride)
        if count := len(windows.cut_questions):
            first = questions[windows.cut_questions[0]]
            warnings.warn(
                f"{count} questions are too long and were cut (first: {first[:40]}…)", stacklevel=2
            )
        unknown = np.isin(windows.context_ids, unknown_ids(self.tokenizer)).sum()
        if 2 * unknown > len(windows.context_ids):
            warnings.warn(
                "most of the context's tokens are unknown to the model, whose answers then mean "
                "little; choose a model for this language and script",
                stacklevel=2,
            )
        size = settings.n_best_size
        with loop.determinism(self.process.device):  # the caller's own choice stays as it is
            found, _ = loop.predict(
                self.process, self.model, windows, examples, settings, max(size, n_best)
            )
        results = []
        for i, spans in enumerate(found.values()):
            if not spans:
                raise UserError(f"context[{i}]: holds no text that the model can read")
            whole = sum(span.probability for span in spans[:size])
            best = [Answer(*span[:3], span.probability / whole) for span in spans[:n_best]]
            results.append(best if n_best > 1 else best[0])
        return results[0] if isinstance(question, str) and isinstance(context, str) else results


def _texts(given: Any, name: str) -> list[str]:
    """A text or a list of them, as a list. Raises UserError, naming the item."""
    if not isinstance(given, (str, list, tuple)):
        raise UserError(f"{name}: must be text or a list of texts, not {type(given).__name__}")
    texts = [given] if isinstance(given, str) else list(given)
    for i, text in enumerate(texts):
        place = name if isinstance(given, str) else f"{name}[{i}]"
        if not isinstance(text, str):
            raise UserError(f"{place}: must be text, not {type(text).__name__}")
        if not text.strip():
            raise UserError(f"{place}: is empty")
        try:
            text.encode()
        except (
            UnicodeEncodeError
        ):  # half a surrogate pair; bytes of a command line that are no UTF-8
            raise UserError(f"{place}: is no valid Unicode text; mend the encoding") from None
    return texts


def _read_context(path: str) -> str:
    try:
        return study.expand_path(path).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--context_file: {path} cannot be read as UTF-8 text: {reason}") from None


def _questions() -> Iterator[str]:
    """The lines of standard input as they come; at a terminal, the answers to a prompt."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 (the line can be edited, then)
        with suppress(EOFError):
            while True:
                yield input("question (Ctrl-D ends): ").strip()
        return
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    line = ""
    for line in sys.stdin:
        yield line.strip()
    if not line:
        raise UserError("standard input: holds no question; give --question, or one a line")


def main() -> None:
    parser = study.Parser(
        prog="python -m qa.answer",
        description="Ask a trained model. Without --question, standard input holds one a line.",
        epilog="On a terminal an answer is shown in its sentence, several as a table. Into a pipe go "
        "the answers' texts alone, one a line; with --json, an object for each: question, text, "
        "start and end (characters of the context), score (0 to 1, not calibrated).",
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, help="a run; or a model's folder, hub id, embedded")
    parser.add_argument("--question", help="default: the lines of standard input")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--context", help="text of any length that the answer stands in")
    source.add_argument("--context_file", metavar="FILE", help="the same from a file")
    parser.add_argument("--n_best", default=1, help="answers to each question [1]")
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line")
    given = parser.parse_args()
    limits = study.FIELDS["n_best_size"].metadata
    n_best = study.check_value("n_best", given.n_best, int, limits, "--n_best")
    context = given.context if given.context_file is None else _read_context(given.context_file)
    _texts(context, "--context_file" if given.context is None else "--context")
    if given.question is not None:
        _texts(given.question, "--question")

    from qa import report

    sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = report.print_warning
    console = report.make_console()
    with console.status("loading the model"):
        answerer = Answerer.load(given.run)
    for question in _questions() if given.question is None else (given.question,):
        if question:
            found = answerer.answer(question=question, context=context, n_best=n_best)
            report.print_answers(
                console, question, context, [found] if n_best == 1 else found, given.json
            )


if __name__ == "__main__":
    from qa.report import run_command

    run_command(main)
