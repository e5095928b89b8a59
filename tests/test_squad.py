"""Reading, checking, holding out and drawing examples."""

import json

import pytest
from accelerate import Accelerator

import train
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


MILL = "The mill was bought by Mrs. Orla Venn in 1902. It burned down in 1911."
GOOD = {"text": "Mrs. Orla Venn", "answer_start": 23}
BAD = {"text": "Orla V.", "answer_start": -1}


def one_question(id="a", answers=(GOOD,), **article):
    """A file of a single question, whose article has what is given."""
    qa = {"id": id, "question": "Who bought the mill?", "answers": list(answers)}
    return {"data": [{**article, "paragraphs": [{"context": MILL, "qas": [qa]}]}]}


def read(folder, document, on_bad_example="error"):
    path = folder / "t.json"
    path.write_text(json.dumps(document))
    return squad.read_file("train", str(path), on_bad_example)


def rows_of(document, **columns):
    """The questions of a file as rows of a `datasets` split; columns: other values for them."""
    rows = [
        {"title": a.get("title"), "context": p["context"], "id": q["id"], "question": q["question"],
         "answers": q["answers"]}
        for a in document["data"] for p in a["paragraphs"] for q in p["qas"]
    ]  # fmt: skip
    return [row | {name: values[n] for name, values in columns.items()}
            for n, row in enumerate(rows)]  # fmt: skip


def read_rows(folder, rows, on_bad_example="error"):
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(folder / "d")
    settings = small_settings(dataset_name=str(folder / "d"), on_bad_example=on_bad_example)
    return squad.read_dataset(settings, ["train"])[0]["train"]


@pytest.mark.parametrize("id", [262, 0, -7, 10**30])
def test_a_whole_number_is_an_id_of_that_text(tmp_path, id):
    assert read(tmp_path, one_question(id)).examples == [
        squad.Example(str(id), "article 0", MILL, "Who bought the mill?", (("Mrs. Orla Venn", 23),))
    ]


def test_a_whole_number_and_its_text_are_the_same_id(tmp_path):
    document = one_question(7)
    document["data"] += one_question("7")["data"]
    with pytest.raises(UserError, match=r"data\[1\].*id '7' stands twice"):
        read(tmp_path, document)
    document["data"][1]["paragraphs"][0]["qas"][0]["id"] = "07"
    assert [e.id for e in read(tmp_path, document).examples] == ["7", "07"]


@pytest.mark.parametrize("start", ["23", " 23", "23 ", "+23", 23.0])
def test_a_start_may_be_text_or_a_float_that_holds_a_whole_number(tmp_path, start):
    answer = {**GOOD, "answer_start": start}
    assert read(tmp_path, one_question(answers=[answer])).examples[0].answers == (
        ("Mrs. Orla Venn", 23),
    )


@pytest.mark.parametrize("start", [23, "23", 23.0])
@pytest.mark.parametrize("objects", [True, False])
def test_columns_of_a_datasets_folder_may_be_of_those_types(tmp_path, start, objects):
    answer = {**GOOD, "answer_start": start}
    answers = [answer] if objects else {name: [value] for name, value in answer.items()}
    rows = rows_of(one_question(262), answers=[answers])
    (example,) = read_rows(tmp_path, rows).examples
    assert example.id == "262" and example.answers == (("Mrs. Orla Venn", 23),)
    assert example.title == MILL, "untitled rows of one passage belong together"


def test_a_bad_row_of_a_datasets_folder_is_skipped_alone(tmp_path):
    document = toy_document(4)
    answers = [q["answers"] for a in document["data"] for p in a["paragraphs"] for q in p["qas"]]
    answers = [{name: [a[0][name]] for name in ("text", "answer_start")} for a in answers]
    answers[1], answers[2] = None, {"text": ["x"], "answer_start": []}
    split = read_rows(tmp_path, rows_of(document, answers=answers), "skip")
    assert len(split.examples) == 2
    assert str(split.skipped) == "2 questions dropped as bad"
    assert "answers: must be a list, not null" in split.skipped.first


@pytest.mark.parametrize("article", [{}, *({"title": t} for t in (None, "", " ", float("nan")))])
def test_an_article_needs_no_title(tmp_path, article):
    document = one_question("a", **article)
    document["data"] += one_question("b", **article)["data"]
    assert [e.title for e in read(tmp_path, document).examples] == ["article 0", "article 1"]


def test_a_number_is_a_title_of_that_text(tmp_path):
    assert read(tmp_path, one_question(title=1984)).examples[0].title == "1984"


def test_a_bad_answer_beside_good_ones_is_an_error_that_names_the_remedies(tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path, one_question(answers=[GOOD, BAD]))
    said = str(error.value)
    assert "qas[0].answers[1]: answer_start -1 puts the answer outside the context" in said
    assert said.endswith("; correct it, or drop such answers with --on_bad_example skip")


def test_a_question_keeps_its_good_answers(tmp_path):
    document = one_question("a", [BAD, GOOD, {**GOOD, "answer_start": 22}])
    document["data"] += one_question("b", [GOOD])["data"]
    split = read(tmp_path, document, "skip")
    assert [e.answers for e in split.examples] == [(("Mrs. Orla Venn", 23),)] * 2
    assert str(split.skipped) == "2 answers dropped as bad"
    assert "data[0].paragraphs[0].qas[0].answers[0]: answer_start -1" in split.skipped.first
    assert str(split) == "t.json: 2 questions of 2 articles, 2 answers dropped as bad"


def test_a_question_without_a_good_answer_is_dropped_as_one_question(tmp_path):
    document = one_question("a", [BAD, BAD])
    document["data"] += one_question("b")["data"]
    split = read(tmp_path, document, "skip")
    assert str(split) == "t.json: 1 question of 1 article, 1 question dropped as bad"
    with pytest.raises(UserError, match="holds no question; 1 question dropped as bad, first: dat"):
        read(tmp_path, one_question("a", [BAD, BAD]), "skip")
    with pytest.raises(UserError, match="or drop such questions with --on_bad_example skip"):
        read(tmp_path, document)


def test_what_cannot_be_used_counts_by_its_questions(tmp_path):
    document = toy_document(30, titles=3)  # ten questions of each article, each in a paragraph
    first, second, _ = document["data"]
    first["title"] = ["x"]
    second["paragraphs"][0]["context"] = 5
    second["paragraphs"][0]["qas"] *= 3
    second["paragraphs"][1] = None
    del second["paragraphs"][2]["qas"]
    second["paragraphs"][3]["qas"][0]["question"] = ""
    second["paragraphs"][4]["qas"][0]["answers"].append(BAD)
    document["data"].append({"paragraphs": "x"})
    split = read(tmp_path, document, "skip")
    assert (split.skipped.questions, split.skipped.answers) == (10 + 3 + 1 + 1 + 1 + 1, 1)
    assert str(split.skipped) == "17 questions and 1 answer dropped as bad"
    assert split.skipped.first == "data[0]: title must be text, not a list; correct it"
    assert len(split.examples) == 16


def test_bad_examples_are_dropped_and_counted_on_request(tmp_path):
    document = toy_document(20)
    qas = [p["qas"][0] for a in document["data"] for p in a["paragraphs"]]
    qas[3]["answers"][0]["answer_start"] += 1
    qas[5]["answers"] = []
    qas[7]["id"] = qas[6]["id"]
    document["data"][6]["paragraphs"][0]["context"] = 5
    split = read(tmp_path, document, "skip")
    assert len(split.examples) == 16 and split.skipped.questions == 4
    assert "4 questions dropped as bad" in str(split)
    with pytest.raises(UserError, match=r"data\[1\]\.paragraphs\[0\]\.qas\[0\]"):
        read(tmp_path, document)


def test_the_header_of_a_run_tells_dropped_questions_and_answers_apart(
    tmp_path, encoder, toy_files
):
    document = toy_document(12)
    articles = document["data"]
    articles[1]["paragraphs"][0]["qas"][0]["answers"].append(BAD)
    articles[2]["paragraphs"][0]["qas"][0]["answers"] = [BAD]
    articles[0]["paragraphs"][0]["context"] = None
    (tmp_path / "train.json").write_text(json.dumps(document))
    files = {**toy_files, "train_file": str(tmp_path / "train.json")}
    settings = small_settings(
        **files,
        model_name_or_path=str(encoder),
        cache_dir=str(tmp_path),
        on_bad_example="skip",
        method="pretrained",
    )
    accelerator = Accelerator(cpu=True)
    prepared = train.prepare(settings, accelerator)
    shown = train.facts(settings, prepared, train.make_model(settings, prepared.base, "cpu"))
    assert shown["train skipped"] == (
        "2 questions and 1 answer dropped as bad, first: "
        "data[0].paragraphs[0]: context must be text, not null; correct it"
    )
    assert "10 questions of 8 articles, 2 questions and 1 answer dropped as bad" in shown["train"]
    assert "test skipped" not in shown and "dropped" not in shown["test"]


def test_references_stand_where_their_text_does(tmp_path):
    answers = [
        {"text": "in", "answer_start": 62},  # right, though not the first place
        {"text": "Orla", "answer_start": 0},
        {"text": "1902", "answer_start": "-1"},
        {"text": "19", "answer_start": "65"},
        {"text": "Oslo", "answer_start": 3},
    ]
    document = one_question(262, answers, title="Mill")
    (tmp_path / "r.json").write_text(json.dumps(document))
    references = squad.read_references(str(tmp_path / "r.json"))
    places = [MILL.rindex("in"), MILL.index("Orla"), MILL.index("1902"), MILL.rindex("19"), -1]
    assert [start for _, start in references.examples[0].answers] == places
    assert not references.is_v2 and not references.problems
    assert str(references) == "r.json: 1 question of 1 article"


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
