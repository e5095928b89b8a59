"""Files or hub → checked examples, in three splits that never mix.

Three sources give the same examples: SQuAD v1.1 JSON files, a data set of the hub, a folder saved
by `datasets`. Each example is checked before anything is computed from it, and the first bad one
stops the program with its place in the file (or is dropped and counted, on request).
"""

import hashlib
import json
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
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

    A question that is asked of a trained model has none; those of files always have some.
    """

    id: str
    title: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Split:
    """Examples of one split, and what a person should know about where they come from."""

    name: str
    examples: list[Example]
    source: str
    skipped: list[str] = field(default_factory=list)  # "place: problem" of each dropped example

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every text, id and position, in order."""
        digest = hashlib.blake2b(digest_size=16)
        for example in self.examples:
            parts = (example.id, example.title, example.context, example.question, example.answers)
            digest.update(json.dumps(parts).encode())
        return digest.hexdigest()

    def __str__(self) -> str:
        titles = len({example.title for example in self.examples})
        skipped = f", {len(self.skipped):,} bad ones dropped" if self.skipped else ""
        return f"{self.source}: {len(self.examples):,} questions of {titles:,} articles{skipped}"


class BadExample(Exception):
    """What is wrong at which place; caught in this file."""


def _text(value: Any, place: str, what: str) -> str:
    if not isinstance(value, str):
        raise BadExample(f"{place}: {what} must be text, not {_kind(value)}")
    if not value.strip():
        raise BadExample(f"{place}: {what} is empty; fill it in or drop the question")
    if "\0" in value:
        raise BadExample(f"{place}: {what} contains a NUL character; remove it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadExample(f"{place}: {what} contains half a surrogate pair; mend the encoding")
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


def _answers(qa: dict, context: str, place: str) -> tuple[tuple[str, int], ...]:
    found = qa.get("answers")
    if qa.get("is_impossible") is True or found == []:
        raise BadExample(
            f"{place}: has no answer (SQuAD v2?); this program is about answers that stand in the "
            "text: use v1.1 data, or drop such questions with --on_bad_example skip"
        )
    pairs = []
    for k, answer in enumerate(_list(found, f"{place}.answers")):
        where = f"{place}.answers[{k}]"
        text = _text(_object(answer, where).get("text"), where, "text")
        start = answer.get("answer_start")
        if type(start) is not int:
            raise BadExample(f"{where}: answer_start must be a whole number, not {_kind(start)}")
        if not 0 <= start <= len(context) - len(text):
            raise BadExample(
                f"{where}: answer_start {str(start)[:20]} puts the answer outside the context "
                f"of {len(context)} characters; correct it"
            )
        if context[start : start + len(text)] != text:
            here = context[start : start + min(len(text), 30)]
            raise BadExample(
                f"{where}: at answer_start {start} the context reads {here!r}, "
                f"not {text[:30]!r}; correct text or answer_start"
            )
        pairs.append((text, start))
    return tuple(pairs)


def _question(qa: Any, title: str, context: str, place: str, seen: set[str]) -> Example:
    id = _text(_object(qa, place).get("id"), place, "id")
    if id in seen:
        raise BadExample(f"{place}: id {id[:60]!r} stands twice in this split; make ids unique")
    question = _text(qa.get("question"), place, "question")
    answers = _answers(qa, context, place)
    seen.add(id)
    return Example(id, title, context, question, answers)


def _walk(document: Any, skip: Callable[[BadExample], None]) -> Iterator[Example]:
    """The examples of a parsed file in order; problems go to `skip`, which may raise them on."""
    seen: set[str] = set()
    for i, article in enumerate(_list(_object(document, "file").get("data"), "data")):
        try:
            place = f"data[{i}]"
            title = _object(article, place).get("title", f"article {i}")
            title = _text(title, place, "title")
            paragraphs = _list(article.get("paragraphs"), f"{place}.paragraphs")
        except BadExample as problem:
            skip(problem)
            continue
        for j, paragraph in enumerate(paragraphs):
            try:
                place = f"data[{i}].paragraphs[{j}]"
                context = _text(_object(paragraph, place).get("context"), place, "context")
                qas = _list(paragraph.get("qas"), f"{place}.qas")
            except BadExample as problem:
                skip(problem)
                continue
            for k, qa in enumerate(qas):
                try:
                    yield _question(qa, title, context, f"{place}.qas[{k}]", seen)
                except BadExample as problem:
                    skip(problem)


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


def read_predictions(path: Path) -> dict[str, str]:
    """{id: text} from a JSON file, as the official scorer takes it. Raises UserError."""
    texts = read_json(path)
    if not isinstance(texts, dict):
        raise UserError(f"{path}: must be an object of the form {{id: text}}")
    for id, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{path}: the prediction of {id[:60]!r} is no text")
    return texts


def read_file(name: str, path: str, on_bad_example: str = "error") -> Split:
    """The split `name` from a SQuAD v1.1 JSON file. Raises UserError."""
    file = expand_path(path)
    return _checked(name, file.name, str(file), read_json(file), on_bad_example)


def _checked(name: str, source: str, where: str, document: Any, on_bad_example: str) -> Split:
    skipped: list[str] = []

    def skip(problem: BadExample) -> None:
        if on_bad_example == "error":
            raise problem
        skipped.append(str(problem))

    try:
        examples = list(_walk(document, skip))
    except BadExample as problem:
        raise UserError(f"{where}: {problem}") from None
    if not examples:
        first = f"; the first of {len(skipped)} bad ones: {skipped[0]}" if skipped else ""
        raise UserError(f"{where}: holds no question{first}")
    return Split(name, examples, source, skipped)


def _rows_as_document(rows: Any) -> dict:
    """A `datasets` split in the layout of the files, each row an article of its own."""
    return {
        "data": [
            {
                "title": row.get("title") or row["context"] or "untitled",
                "paragraphs": [{"context": row["context"], "qas": [_row_as_question(row)]}],
            }
            for row in rows
        ]
    }


def _row_as_question(row: dict) -> dict:
    answers = row["answers"]
    pairs = zip(answers["text"], answers["answer_start"], strict=True)
    listed = [{"text": text, "answer_start": start} for text, start in pairs]
    return {"id": row["id"], "question": row["question"], "answers": listed}


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
            try:
                document = _rows_as_document(found[key])
            except (TypeError, KeyError, ValueError):
                raise UserError(
                    f"dataset_name: {name}, split {key}: answers must hold text and answer_start"
                ) from None
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
