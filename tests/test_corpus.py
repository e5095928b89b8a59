"""Is the embedded corpus what its README says: sound answers, clean splits, no giveaways?"""

import json
import re

import pytest

from qa.embedded import build_corpus as corpus
from qa.embedded import town

NAMES = ("train", "validation", "test")
# Types whose values are names of something; the rest are numbers, dates and sums.
NAMED = ("person", "firm", "port", "quay", "street")
WORDED = ("cause", "lapse", "offence", "office")


@pytest.fixture(scope="module")
def files():
    return {name: json.loads((corpus.CORPUS / f"{name}.json").read_text("utf-8")) for name in NAMES}


@pytest.fixture(scope="module")
def built():
    return {name: corpus.build(corpus.SPLITS[name]) for name in NAMES}


def paragraphs(articles):
    return [paragraph for article in articles for paragraph in article["paragraphs"]]


def questions(data):
    return [qa for paragraph in paragraphs(data["data"]) for qa in paragraph["qas"]]


def found(text, context):
    """How often `text` stands in `context` as whole words."""
    return len(re.findall(rf"(?<![\w-]){re.escape(text)}(?![\w-])", context, re.IGNORECASE))


def test_regenerating_gives_the_same_bytes(tmp_path):
    corpus.write(tmp_path)
    for name in NAMES:
        fresh = (tmp_path / f"{name}.json").read_bytes()
        assert fresh == (corpus.CORPUS / f"{name}.json").read_bytes(), name


def test_layout_is_squad_1_1(files):
    for data in files.values():
        assert list(data) == ["version", "data"] and data["version"] == "1.1"
        for article in data["data"]:
            assert list(article) == ["title", "paragraphs"]
            for paragraph in article["paragraphs"]:
                assert list(paragraph) == ["context", "qas"]
                for qa in paragraph["qas"]:
                    assert list(qa) == ["id", "question", "answers"]
                    assert all(list(answer) == ["text", "answer_start"] for answer in qa["answers"])


def test_answers_stand_in_their_place(files):
    for name, data in files.items():
        for paragraph in paragraphs(data["data"]):
            for qa in paragraph["qas"]:
                assert 1 <= len(qa["answers"]) <= (3 if name == "test" else 1), qa["id"]
                for answer in qa["answers"]:
                    start, text = answer["answer_start"], answer["text"]
                    assert text and text == text.strip(), qa["id"]
                    assert paragraph["context"][start : start + len(text)] == text, qa["id"]
                # the first gold is unambiguous: it stands in the passage once
                assert found(qa["answers"][0]["text"], paragraph["context"]) == 1, qa["id"]


def test_ids_titles_and_passages_are_unique_over_all_splits(files):
    ids = [qa["id"] for data in files.values() for qa in questions(data)]
    titles = [article["title"] for data in files.values() for article in data["data"]]
    contexts = [p["context"] for data in files.values() for p in paragraphs(data["data"])]
    for values in (ids, titles, contexts):
        assert len(values) == len(set(values))


def test_no_question_is_asked_twice_of_a_passage(files):
    for data in files.values():
        for paragraph in paragraphs(data["data"]):
            asked = [qa["question"] for qa in paragraph["qas"]]
            assert len(asked) == len(set(asked))


def test_counts_and_size(files):
    asked = {name: len(questions(data)) for name, data in files.items()}
    assert asked == {"train": 1500, "validation": 300, "test": 504}
    assert {name: len(data["data"]) for name, data in files.items()} == {
        "train": 150,
        "validation": 30,
        "test": 63,
    }
    assert sum(path.stat().st_size for path in corpus.CORPUS.iterdir()) <= 3_000_000


def test_passages_are_prose_of_60_to_180_words(files):
    for data in files.values():
        for paragraph in paragraphs(data["data"]):
            context = paragraph["context"]
            assert 60 <= len(context.split()) <= 180
            assert not re.search(r"  |[{}]|\.\.|,,| [,.;]|\bNone\b", context), context
            for sentence in context.split(". "):
                assert sentence[0].isupper(), sentence
            for qa in paragraph["qas"]:
                assert qa["question"][0].isupper() and qa["question"].endswith("?")
                assert not re.search(r"  |[{}]", qa["question"])


def tokens(text):
    return re.findall(r"[\w'-]+", text.lower())


def entities(articles):
    """Every name told of in these articles; of a person the surname, too."""
    names = set()
    for paragraph in paragraphs(articles):
        for fact in paragraph["facts"]:
            kind, name = fact.entity.kind, fact.entity.name.removeprefix("the ")
            names |= {name, fact.entity.full.removeprefix("the ")}
            if kind == "officer":
                names.add(name.split()[-1])
            if fact.relation.type in NAMED + WORDED:
                names.add(fact.answer)
            if fact.relation.type == "person":
                names.add(fact.answer.split()[-1])
            if fact.relation.type == "goods":  # the wares without their number
                names.add(fact.answer.split(" ", 1)[1])
    return names


@pytest.mark.parametrize("name", NAMES)
def test_entities_of_a_split_are_met_in_no_other(name, files, built):
    names = entities(built[name])
    assert len(names) > 100
    sought = {tuple(tokens(name)) for name in names}
    firsts = {name[0] for name in sought}
    for other in NAMES:
        if other == name:
            continue
        words = tokens(json.dumps(files[other], ensure_ascii=False))
        longest = max(len(name) for name in sought)
        met = {
            tuple(words[at : at + n])
            for at in range(len(words))
            if words[at] in firsts
            for n in range(1, longest + 1)
        } & sought
        assert not met, (other, met)


def test_relations_and_their_forms():
    names = [relation.name for relation in town.RELATIONS]
    assert len(names) == len(set(names)) >= 12
    forms = [form for r in town.RELATIONS for form in r.questions + r.test_questions]
    assert len(forms) == len(set(forms))  # else a form would not tell the relation
    for relation in town.RELATIONS:
        assert len(set(relation.sentences)) >= 3, relation.name
        assert len(relation.questions) >= 3 and relation.test_questions, relation.name
        for form in relation.sentences:
            assert form.count("{a}") == 1 and "," not in form and not form.endswith("."), form


def test_question_forms_are_used_and_test_forms_kept_for_the_test(built):
    used = {
        name: {form for p in paragraphs(articles) for _, form, _ in p["questions"]}
        for name, articles in built.items()
    }
    for relation in town.RELATIONS:
        assert set(relation.questions) <= used["train"], relation.name
        assert set(relation.test_questions) <= used["test"], relation.name
        assert not set(relation.test_questions) & (used["train"] | used["validation"])


def test_test_forms_do_not_stand_in_the_files_of_train_and_validation(files):
    forms = [form for relation in town.RELATIONS for form in relation.test_questions]
    patterns = [re.compile(re.escape(form).replace(r"\{e\}", ".+")) for form in forms]
    for name in ("train", "validation"):
        for qa in questions(files[name]):
            assert not any(p.fullmatch(qa["question"]) for p in patterns), qa["question"]


def test_every_sentence_form_is_told(files):
    text = " ".join(p["context"] for p in paragraphs(files["train"]["data"]))
    for relation in town.RELATIONS:
        for form in relation.sentences:
            # an elided subject leaves the rest of the form in place
            rest = re.escape(form.removeprefix("{S} "))
            pattern = re.sub(r"\\\{\w+\\\}", r"[^.;]+?", rest)
            assert re.search(pattern, text, re.IGNORECASE), form


def test_every_relation_is_asked_about_in_every_split(files):
    for name, data in files.items():
        asked = [qa["id"].rsplit("-", 1)[1] for qa in questions(data)]
        for relation in town.RELATIONS:
            assert asked.count(relation.name) >= 3, (name, relation.name)


def test_every_question_has_a_distractor_of_its_type(built):
    for name, articles in built.items():
        for paragraph in paragraphs(articles):
            told = paragraph["facts"]
            for fact, _, question in paragraph["questions"]:
                others = {
                    other.answer
                    for other in told
                    if other.relation.type == fact.relation.type and other.answer != fact.answer
                }
                present = [answer for answer in others if found(answer, paragraph["context"])]
                assert present, (name, question)


def test_passages_tell_of_several_entities_that_cannot_be_mistaken(built):
    for articles in built.values():
        for paragraph in paragraphs(articles):
            cast = list({id(f.entity): f.entity for f in paragraph["facts"]}.values())
            assert 2 <= len(cast) <= 4
            names = [entity.name for entity in cast]
            rigs = [entity.short for entity in cast if entity.kind == "ship"]
            people = [e.full for e in cast if e.kind == "officer"]
            people += [f.answer for f in paragraph["facts"] if f.relation.type == "person"]
            surnames = [person.split()[-1] for person in people]
            for values in (names, rigs, surnames):
                assert len(values) == len(set(values)), values
            for entity in cast:  # named in full before anything else is said
                context, name = paragraph["context"].lower(), entity.name.lower()
                bare = name.removeprefix("the ")
                full = entity.full.lower()
                assert context.index(bare) == context.index(full) + full.index(bare)


def test_a_ship_sails_after_she_arrived_and_a_house_pays_after_it_signed():
    assert corpus.following("winter", 1731) == ("spring", 1731)
    assert corpus.following("autumn", 1731) == ("winter", 1732)


@pytest.mark.parametrize(
    ("n", "cardinal", "ordinal"),
    [
        (1, "one", "first"),
        (2, "two", "second"),
        (3, "three", "third"),
        (5, "five", "fifth"),
        (8, "eight", "eighth"),
        (9, "nine", "ninth"),
        (12, "twelve", "twelfth"),
        (13, "thirteen", "thirteenth"),
        (20, "twenty", "twentieth"),
        (21, "twenty-one", "twenty-first"),
        (28, "twenty-eight", "twenty-eighth"),
        (99, "ninety-nine", "ninety-ninth"),
    ],
)
def test_numbers_in_words(n, cardinal, ordinal):
    assert (corpus.number(n), corpus.ordinal(n)) == (cardinal, ordinal)
