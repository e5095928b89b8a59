"""Reading, checking, holding out and drawing examples."""

import json

import pytest

from qa import UserError, squad
from tests.conftest import small_settings, toy_document, toy_split


def test_squad_dev_is_read_whole(squad_dev):
    assert len(squad_dev.examples) == 10_570
    assert sum(len(e.answers) for e in squad_dev.examples) == 34_726
    assert str(squad_dev) == "dev-v1.1.json: 10,570 questions of 48 articles"


def as_datasets(splits):
    import datasets

    def rows(split):
        return [
            {
                "id": e.id, "title": e.title, "context": e.context, "question": e.question,
                "answers": {"text": [t for t, _ in e.answers],
                            "answer_start": [s for _, s in e.answers]},
            }
            for e in split.examples
        ]  # fmt: skip

    return datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows(split)) for name, split in splits.items()}
    )


def test_a_datasets_folder_gives_the_same_examples(tmp_path):
    train, test = toy_split(30, 0), toy_split(10, 1)
    as_datasets({"train": train, "validation": test}).save_to_disk(tmp_path / "d")
    splits, commit = squad.load_splits(small_settings(dataset_name=str(tmp_path / "d")))
    assert splits["test"].examples == test.examples, "SQuAD's validation is the test split"
    both = splits["train"].examples + splits["validation"].examples
    assert sorted(both, key=lambda e: e.id) == sorted(train.examples, key=lambda e: e.id)
    assert commit is None
    third = toy_split(5, 2)
    as_datasets({"train": train, "validation": test, "test": third}).save_to_disk(tmp_path / "e")
    splits, _ = squad.load_splits(small_settings(dataset_name=str(tmp_path / "e")))
    assert splits["validation"].examples == test.examples
    assert splits["test"].examples == third.examples


def test_whole_articles_are_held_out_before_questions_are_drawn(toy_files):
    files = {name: toy_files[name] for name in ("train_file", "test_file")}
    settings = small_settings(**files, validation_fraction=0.25, max_train_samples=10)
    splits, _ = squad.load_splits(settings)
    titles = {name: {e.title for e in split.examples} for name, split in splits.items()}
    assert len(titles["validation"]) == 2 and not titles["train"] & titles["validation"]
    assert len(splits["train"].examples) == 10
    whole, _ = squad.load_splits(small_settings(**files, validation_fraction=0.25))
    assert splits["validation"].examples == whole["validation"].examples
    assert len(whole["train"].examples) + len(whole["validation"].examples) == 60
    alone, _ = squad.load_splits(settings, ["validation"])
    assert list(alone) == ["validation"]
    assert alone["validation"].examples == whole["validation"].examples
    for field, same in (("seed", True), ("data_seed", False)):
        other, _ = squad.load_splits(
            small_settings(**files, validation_fraction=0.25, max_train_samples=10, **{field: 1})
        )
        assert (other["train"].examples == splits["train"].examples) == same
        assert (other["validation"].examples == splits["validation"].examples) == same


def test_the_header_names_all_three_splits(toy_files):
    splits, _ = squad.load_splits(small_settings(**toy_files, max_test_samples=5))
    assert str(splits["train"]) == "train.json: 60 questions of 8 articles"
    assert "validation.json: 16 questions" in str(splits["validation"])
    assert str(splits["test"]).startswith("test.json, drawn from its 20 questions: 5 questions")


def test_bad_examples_are_dropped_and_counted_on_request(tmp_path):
    document = toy_document(20)
    qas = [p["qas"][0] for a in document["data"] for p in a["paragraphs"]]
    qas[3]["answers"][0]["answer_start"] += 1
    qas[5]["answers"] = []
    qas[7]["id"] = qas[6]["id"]
    document["data"][6]["paragraphs"][0]["context"] = 5
    path = tmp_path / "t.json"
    path.write_text(json.dumps(document))
    split = squad.read_file("train", str(path), "skip")
    assert len(split.examples) == 16 and len(split.skipped) == 4
    assert split.skipped[3].startswith(
        "data[6].paragraphs[0]: context must be text, not the number"
    )
    assert "4 bad ones dropped" in str(split)
    with pytest.raises(UserError, match=r"data\[1\]\.paragraphs\[0\]\.qas\[0\]"):
        squad.read_file("train", str(path))


def test_fingerprints_see_every_part():
    split = toy_split(5)
    seen = {split.fingerprint, toy_split(5).fingerprint}
    assert len(seen) == 1
    for field, value in (("id", "x"), ("context", "x"), ("question", "x"), ("answers", ())):
        from dataclasses import replace

        changed = [replace(split.examples[0], **{field: value}), *split.examples[1:]]
        seen.add(squad.Split("toy", changed, "toy").fingerprint)
    assert len(seen) == 5


def test_passages_of_the_test_split_that_were_trained_on_are_counted():
    train, test = toy_split(10), toy_split(10, seed=1)
    splits = {"train": train, "validation": toy_split(3, seed=2), "test": test}
    assert squad.leaked_contexts(splits) == 0
    assert squad.leaked_contexts({**splits, "test": train}) == 10
