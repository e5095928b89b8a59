"""Files or hub → checked examples, in three splits that never mix.

Three sources give the same examples: SQuAD v1.1 JSON files, a data set of the hub, a folder saved
by `datasets`. Each example is checked before anything is computed from it, and the first bad one
stops the program with its place in the file (or is dropped and counted, on request).
Files that predictions are scored against have a reader of their own: scoring reads ids and texts
of answers alone, as SQuAD's scripts do.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from qa import UserError, in_one_line
from qa.study import ROOT, Settings, expand_path

SPLITS = ("train", "validation", "test")
# Names that resolve when data is loaded, so that no saved file holds a path of one machine.
SHORT_NAMES = {"embedded": ROOT / "qa/embedded/corpus"}


@dataclass(frozen=True, slots=True)
class Example:
    """One question. answers: (text, start) pairs; start counts characters of the context.

    A question that is asked of a trained model has none; those of training files always have some.
    """

    id: str
    title: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]


@dataclass
class Skipped:
    """How much of a split was dropped as bad. answers: those of questions that were kept."""

    questions: int = 0
    answers: int = 0
    first: str = ""  # "place: problem"

    def __str__(self) -> str:
        counts = [(self.questions, "question"), (self.answers, "answer")]
        return " and ".join(_counted(n, noun) for n, noun in counts if n) + " dropped as bad"


@dataclass(frozen=True)
class Split:
    """Examples of one split, and what a person should know about where they come from."""

    name: str
    examples: list[Example]
    source: str
    skipped: Skipped = field(default_factory=Skipped)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every text, id and position, in order."""
        digest = hashlib.blake2b(digest_size=16)
        for example in self.examples:
            parts = (example.id, example.title, example.context, example.question, example.answers)
            digest.update(json.dumps(parts).encode())
        return digest.hexdigest()

    def __str__(self) -> str:
        titles = _counted(len({example.title for example in self.examples}), "article")
        skipped = f", {self.skipped}" if self.skipped.first else ""
        return f"{self.source}: {_counted(len(self.examples), 'question')} of {titles}{skipped}"


@dataclass(frozen=True)
class References(Split):
    """Questions that predictions are scored against.

    is_v2: they are SQuAD 2.0's, some without an answer. problems: by id, "place: problem" of
    answers that cannot be read. They matter where the question has a prediction: SQuAD's v1.1
    script looks at no others.
    """

    is_v2: bool = False
    problems: dict[str, str] = field(default_factory=dict)


class BadExample(Exception):
    """What is wrong at which place, and what to do about it; caught in this file."""

    def __init__(self, problem: str, remedy: str = "correct it"):
        super().__init__(f"{problem}; {remedy}")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _text(value: Any, place: str, what: str) -> str:
    if not isinstance(value, str):
        raise BadExample(f"{place}: {what} must be text, not {_kind(value)}")
    if not value.strip():
        raise BadExample(f"{place}: {what} is empty", "fill it in")
    if "\0" in value:
        raise BadExample(f"{place}: {what} contains a NUL character", "remove it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            problem = f"{place}: {what} contains half a surrogate pair"
            raise BadExample(problem, "mend the encoding") from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true/false"}
    return names.get(type(value), f"the number {str(value)[:20]}")


def _list(value: Any, place: str) -> list:
    if not isinstance(value, list):
        raise BadExample(f"{place}: must be a list, not {_kind(value)}")
    return value


def _object(value: Any, place: str) -> dict:
    if not isinstance(value, dict):
        raise BadExample(f"{place}: must be an object, not {_kind(value)}")
    return value


def _id(value: Any, place: str) -> str:
    """An id as text: many data sets have whole numbers."""
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise BadExample(f"{place}: id must be text or a whole number, not {_kind(value)}")
    return value


def _is_untitled(title: Any) -> bool:
    """Whether a title is missing: null, blank, or the NaN that pandas writes."""
    return title is None or title != title or (isinstance(title, str) and not title.strip())


def _title(title: Any, place: str, untitled: str) -> str:
    if _is_untitled(title):
        return untitled
    return str(title) if type(title) in (int, float) else _text(title, place, "title")


def _start(value: Any) -> int | None:
    """A whole number, also where it is text or a float as pandas writes it; else None."""
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d{1,18}\s*", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _answer(answer: Any, context: str, where: str) -> tuple[str, int]:
    text = _text(_object(answer, where).get("text"), where, "text")
    start = _start(answer.get("answer_start"))
    if start is None:
        kind = _kind(answer.get("answer_start"))
        raise BadExample(f"{where}: answer_start must be a whole number, not {kind}")
    if not 0 <= start <= len(context) - len(text):
        raise BadExample(
            f"{where}: answer_start {str(start)[:20]} puts the answer outside the context "
            f"of {len(context)} characters"
        )
    if context[start : start + len(text)] != text:
        here = context[start : start + min(len(text), 30)]
        raise BadExample(
            f"{where}: at answer_start {start} the context reads {here!r}, not {text[:30]!r}",
            "correct text or answer_start",
        )
    return text, start


def _answers(
    qa: dict, context: str, place: str, skip: Callable[..., None]
) -> tuple[tuple[str, int], ...]:
    """The good answers, one at least; bad ones beside them go to `skip`."""
    found = qa.get("answers")
    if qa.get("is_impossible") is True or found == []:
        raise BadExample(
            f"{place}: has no answer (SQuAD v2?)",
            "this program is about answers that stand in the text: use v1.1 data",
        )
    good, bad = [], []
    for k, answer in enumerate(_list(found, f"{place}.answers")):
        try:
            good.append(_answer(answer, context, f"{place}.answers[{k}]"))
        except BadExample as problem:
            bad.append(problem)
    if not good:
        raise bad[0]
    for problem in bad:
        skip(problem, answers=1)
    return tuple(good)


def _question(
    qa: Any, title: str, context: str, place: str, seen: set[str], skip: Callable[..., None]
) -> Example:
    id = _text(_id(_object(qa, place).get("id"), place), place, "id")
    if id in seen:
        raise BadExample(f"{place}: id {id[:60]!r} stands twice in this split", "make ids unique")
    question = _text(qa.get("question"), place, "question")
    answers = _answers(qa, context, place, skip)
    seen.add(id)
    return Example(id, title, context, question, answers)


def _num_questions(paragraphs: Any) -> int:
    """How many questions are lost with paragraphs that cannot be used: 1 at least."""
    listed = paragraphs if isinstance(paragraphs, list) else [paragraphs]
    asked = [paragraph.get("qas") for paragraph in listed if isinstance(paragraph, dict)]
    return max(1, sum(len(qas) for qas in asked if isinstance(qas, list)))


def _walk(document: Any, skip: Callable[..., None]) -> Iterator[Example]:
    """The examples of a parsed file in order.

    skip(problem, questions=… or answers=…) hears of what is bad, and may raise it on.
    """
    seen: set[str] = set()
    for i, article in enumerate(_list(_object(document, "file").get("data"), "data")):
        try:
            place = f"data[{i}]"
            title = _title(_object(article, place).get("title"), place, f"article {i}")
            paragraphs = _list(article.get("paragraphs"), f"{place}.paragraphs")
        except BadExample as problem:
            lost = article.get("paragraphs") if isinstance(article, dict) else None
            skip(problem, questions=_num_questions(lost))
            continue
        for j, paragraph in enumerate(paragraphs):
            try:
                place = f"data[{i}].paragraphs[{j}]"
                context = _text(_object(paragraph, place).get("context"), place, "context")
                qas = _list(paragraph.get("qas"), f"{place}.qas")
            except BadExample as problem:
                skip(problem, questions=_num_questions(paragraph))
                continue
            for k, qa in enumerate(qas):
                try:
                    yield _question(qa, title, context, f"{place}.qas[{k}]", seen, skip)
                except BadExample as problem:
                    skip(problem, questions=1)


def read_json(path: Path) -> Any:
    """A parsed JSON file. Raises UserError in one line, whatever the file holds."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give a JSON file")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a regular file")
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be read: {reason}; check the path") from None
    try:
        return json.loads(raw.decode("utf-8"))
    except json.JSONDecodeError as error:
        advice = "; save it as UTF-8 without a byte-order mark" if "BOM" in error.msg else ""
        raise UserError(
            f"{path}: no valid JSON: {error.msg} at line {error.lineno}, column {error.colno}{advice}"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: no UTF-8 text: byte {error.start} is {raw[error.start]:#04x}; save it as UTF-8"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: no valid JSON: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON: {str(error).split(';')[0]}") from None


def read_predictions(path: Path, asked: Container[str] | None = None) -> dict[str, str]:
    """{id: text} from a JSON file of that form or of [{"id", "prediction_text"}, …].

    asked: the ids whose predictions must be text (all must, where it is None); others may be
    anything, since nothing reads them. Raises UserError.
    """
    texts = read_json(path)
    try:
        if isinstance(texts, list):
            texts = _as_mapping(texts)
    except BadExample as problem:
        raise UserError(f"{path}: {problem}") from None
    if not isinstance(texts, dict):
        raise UserError(
            f"{path}: must be an object of the form {{id: text}}, or a list of objects with "
            "id and prediction_text"
        )
    for id, text in texts.items():
        if not isinstance(text, str) and (asked is None or id in asked):
            raise UserError(
                f"{path}: the prediction of {id[:60]!r} must be text, not {_kind(text)}; correct it"
            )
    return texts


def _as_mapping(predictions: list) -> dict[str, Any]:
    """{id: prediction} of the form that Hugging Face's metric takes."""
    texts = {}
    for n, prediction in enumerate(predictions):
        place = f"[{n}]"
        id = _id(_object(prediction, place).get("id"), place)
        if id in texts:
            raise BadExample(f"{place}: id {id[:60]!r} stands twice", "keep one of them")
        texts[id] = prediction.get("prediction_text")
    return texts


def read_references(path: str) -> References:
    """The questions of a SQuAD file, v1.1 or 2.0, to score predictions against. Raises UserError.

    It takes what the official scripts take, and needs what they read: ids and texts of answers. A
    start that is wrong or missing becomes that of the text's first place in the context, else -1.
    """
    file = expand_path(path)
    examples, problems = [], {}
    try:
        document = _object(read_json(file), "file")
        is_v2 = str(document.get("version")).lower() in ("2.0", "v2.0")
        for place, title, context, qa in _asked(document):
            id = _id(_object(qa, place).get("id"), place)
            answers = ()
            try:
                answers = _references(qa, context, f"{place}.")
                is_v2 = is_v2 or not answers
            except BadExample as problem:
                problems.setdefault(id, str(problem))
            examples.append(Example(id, title, context, _if_text(qa.get("question")), answers))
    except BadExample as problem:
        raise UserError(f"{file}: {problem}") from None
    if not examples:
        raise UserError(f"{file}: holds no question")
    if is_v2 and problems:  # 2.0's script reads all answers
        raise UserError(f"{file}: {next(iter(problems.values()))}")
    return References("references", examples, file.name, is_v2=is_v2, problems=problems)


def _asked(document: dict) -> Iterator[tuple[str, str, str, Any]]:
    """(place, title, context, question object) in order, whatever title and context are."""
    for i, article in enumerate(_series(document, "data", "")):
        place = f"data[{i}]"
        paragraphs = _series(_object(article, place), "paragraphs", f"{place}.")
        title = article.get("title")
        untitled = _is_untitled(title) or isinstance(title, list | dict)
        for j, paragraph in enumerate(paragraphs):
            place = f"data[{i}].paragraphs[{j}]"
            context = _if_text(_object(paragraph, place).get("context"))
            for k, qa in enumerate(_series(paragraph, "qas", f"{place}.")):
                yield f"{place}.qas[{k}]", f"article {i}" if untitled else str(title), context, qa


def _if_text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _series(owner: dict, name: str, prefix: str) -> list:
    """The list of that name; to the official scripts, "" and {} are empty ones too."""
    value = owner.get(name)
    return [] if value in ("", {}) else _list(value, prefix + name)


def _references(qa: dict, context: str, prefix: str) -> tuple[tuple[str, int], ...]:
    pairs = []
    for k, answer in enumerate(_series(qa, "answers", prefix)):
        where = f"{prefix}answers[{k}]"
        text = _object(answer, where).get("text")
        if not isinstance(text, str):
            raise BadExample(f"{where}: text must be text, not {_kind(text)}")
        start = _start(answer.get("answer_start"))
        if start is None or start < 0 or not context.startswith(text, start):
            start = context.find(text)
        pairs.append((text, start))
    return tuple(pairs)


def read_file(name: str, path: str, on_bad_example: str = "error") -> Split:
    """The split `name` from a SQuAD v1.1 JSON file. Raises UserError."""
    file = expand_path(path)
    return _checked(name, file.name, str(file), read_json(file), on_bad_example)


def _checked(name: str, source: str, where: str, document: Any, on_bad_example: str) -> Split:
    skipped = Skipped()

    def skip(problem: BadExample, questions: int = 0, answers: int = 0) -> None:
        if on_bad_example == "error":
            noun = "questions" if questions else "answers"
            raise UserError(f"{where}: {problem}, or drop such {noun} with --on_bad_example skip")
        skipped.questions += questions
        skipped.answers += answers
        skipped.first = skipped.first or str(problem)

    try:
        examples = list(_walk(document, skip))
    except BadExample as problem:
        raise UserError(f"{where}: {problem}") from None
    if not examples:
        first = f"; {skipped}, first: {skipped.first}" if skipped.first else ""
        raise UserError(f"{where}: holds no question{first}")
    return Split(name, examples, source, skipped)


def _rows_as_document(rows: Any) -> dict:
    """A `datasets` split in the layout of the files, each row an article of its own.

    The passage stands for a missing title, so that its questions stay together.
    """
    articles = []
    for row in rows:
        title, context = row.get("title"), row["context"]
        if _is_untitled(title) and isinstance(context, str):
            title = context
        paragraph = {"context": context, "qas": [_row_as_question(row)]}
        articles.append({"title": title, "paragraphs": [paragraph]})
    return {"data": articles}


def _row_as_question(row: dict) -> dict:
    """Its answers may be lists of texts and starts, or a list of objects as in the files."""
    answers = row["answers"]
    if isinstance(answers, dict):
        texts, starts = (answers.get(name, []) for name in ("text", "answer_start"))
        if isinstance(texts, list) and isinstance(starts, list):
            pairs = zip_longest(texts, starts)
            answers = [{"text": text, "answer_start": start} for text, start in pairs]
    return {"id": row["id"], "question": row["question"], "answers": answers}


def read_dataset(settings: Settings, names: Collection[str]) -> tuple[dict[str, Split], str | None]:
    """The named splits of a hub data set or saved folder, and the commit they come from, if any."""
    name = settings.dataset_name
    if name in SHORT_NAMES:
        return {
            key: read_file(key, str(SHORT_NAMES[name] / f"{key}.json"), settings.on_bad_example)
            for key in names
        }, None
    import datasets
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries: what fails is said below, in one line
    folder = expand_path(name)
    datasets.disable_progress_bars()
    commit = None
    try:
        if folder.is_dir():
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(name, revision=settings.dataset_revision)
            commit = settings.dataset_revision or _commit_of(found)
    except Exception as error:  # the library raises a dozen unrelated kinds
        raise UserError(
            f"dataset_name: {name} cannot be loaded ({in_one_line(error)}); give local "
            "files (--train_file, --test_file; an encoder's folder is --model_name_or_path), or use "
            "--study embedded"
        ) from None
    if not isinstance(found, datasets.DatasetDict) or "train" not in found:
        raise UserError(f"dataset_name: {name} has no split 'train'; save a DatasetDict with one")
    columns = {"id", "context", "question", "answers"}
    splits = {}
    # Where only two splits are published, as of SQuAD, the second one is what scores come from.
    published = {key: key for key in SPLITS if key in found}
    if "test" not in found and "validation" in found:
        published["test"] = published.pop("validation")
    for split, key in published.items():
        if split in names:
            missing = columns - set(found[key].column_names)
            if missing:
                raise UserError(
                    f"dataset_name: {name}, split {key}: no column {sorted(missing)[0]}"
                )
            document = _rows_as_document(found[key])
            source, where = f"{folder.name}/{key}", f"{name}, split {key} (row as data[row])"
            splits[split] = _checked(split, source, where, document, settings.on_bad_example)
    return splits, commit


def _commit_of(found: Any) -> str | None:
    """The hub commit in the cache path of a loaded data set: …/VERSION/COMMIT/file.arrow."""
    for split in found.values():
        for file in split.cache_files:
            commit = Path(file["filename"]).parent.name
            if len(commit) == 40:
                return commit
    return None


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """(train, validation): about `fraction` of the articles, whole, drawn with the seed."""
    titles = sorted({example.title for example in split.examples})
    if len(titles) < 2:
        raise UserError(
            f"{split.source}: one article alone cannot be divided; give --validation_file"
        )
    held = set(random.Random(seed).sample(titles, max(1, round(fraction * len(titles)))))
    parts = ([], [])
    for example in split.examples:
        parts[example.title in held].append(example)
    if not parts[0]:
        raise UserError(f"validation_fraction: {fraction} leaves nothing to train on; lower it")
    return (
        Split("train", parts[0], split.source, split.skipped),
        Split("validation", parts[1], f"{len(held)} articles held out of {split.source}"),
    )


def draw(split: Split, limit: int | None, seed: int) -> Split:
    """At most `limit` of the questions, drawn at random, in their order."""
    if limit is None or limit >= len(split.examples):
        return split
    kept = sorted(random.Random(seed).sample(range(len(split.examples)), limit))
    source = f"{split.source}, drawn from its {len(split.examples):,} questions"
    return Split(split.name, [split.examples[i] for i in kept], source, split.skipped)


def load_splits(
    settings: Settings, names: Collection[str] = SPLITS
) -> tuple[dict[str, Split], str | None]:
    """The named splits as the settings ask, in the order of SPLITS, and the hub commit, if any.

    validation is `validation_file`, else a data set's own (where it has a test split as well),
    else whole articles held out of train. test is `test_file`, else the data set's test split,
    else its validation split, as SQuAD is published. A split that is not named is not opened,
    but for train where validation may come from it.
    """
    commit = None
    splits: dict[str, Split] = {}
    needed = set(names)
    if "validation" in names and not settings.validation_file:
        needed.add("train")
    if settings.dataset_name:
        splits, commit = read_dataset(settings, needed)
    for name in filter(needed.__contains__, SPLITS):
        path = getattr(settings, f"{name}_file")
        if path:
            splits[name] = read_file(name, path, settings.on_bad_example)
        elif name not in splits and name != "validation":
            raise UserError(f"{name}_file: no {name} data; give --{name}_file (or --dataset_name)")
    if "validation" in names and "validation" not in splits:
        splits["train"], splits["validation"] = hold_out(
            splits["train"], settings.validation_fraction, settings.data_seed
        )
    return {
        name: draw(splits[name], getattr(settings, f"max_{name}_samples"), settings.data_seed)
        for name in SPLITS
        if name in names
    }, commit


def leaked_contexts(splits: dict[str, Split]) -> int:
    """How many passages of the test split also stand in train or validation."""
    seen = {e.context for name in ("train", "validation") for e in splits[name].examples}
    return len({e.context for e in splits["test"].examples} & seen)
