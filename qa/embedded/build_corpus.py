"""Where does the embedded corpus come from? It is written here, the same bytes every time.

    python -m qa.embedded.build_corpus [--to DIR]

A passage is a few entities (ships, town officers, merchant houses) and the facts the registers
hold about them, told in sentences of varying form and order. At least two entities of a kind
share each relation, so that knowing the type of the answer is not enough: the reader must find
the right entity, too. `town.py` holds the relations and the words.
"""

import argparse
import itertools
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from qa.embedded import town

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Split:
    name: str
    articles: int
    questions: int  # per paragraph
    words: tuple[float, float]  # the share of every word list that belongs to this split


PARAGRAPHS = 2  # per article
SPLITS = {
    split.name: split
    for split in (
        Split("train", 150, 5, (0.0, 0.55)),
        Split("validation", 30, 5, (0.55, 0.7)),
        Split("test", 63, 4, (0.7, 1.0)),
    )
}
WORDS_IN_PASSAGE = range(60, 181)

# Which kinds of entity meet in a passage, and how many relations each kind tells there.
CASTS = (
    (("ship", 2, 5),),
    (("ship", 3, 3),),
    (("officer", 2, 5),),
    (("officer", 3, 3),),
    (("firm", 2, 5),),
    (("firm", 3, 3),),
    (("ship", 2, 3), ("officer", 2, 2)),
    (("ship", 2, 2), ("firm", 2, 2)),
    (("officer", 2, 2), ("firm", 2, 2)),
)


HE, SHE, IT = ("he", "him", "his"), ("she", "her", "her"), ("it", "it", "its")


@dataclass(frozen=True, eq=False)
class Entity:
    kind: str
    full: str  # at first mention: "the brig Grey Heron"
    name: str  # later, and in questions: "the Grey Heron"
    short: str  # a description: "the brig"
    pronouns: tuple[str, str, str]  # ("he", "him", "his")


@dataclass(frozen=True)
class Fact:
    entity: Entity
    relation: town.Relation
    answer: str


@dataclass(frozen=True, eq=False)
class Clause:
    text: str
    entity: Entity
    relation: town.Relation | None = None
    subject: str | None = None  # as written, where the clause begins with it
    pronoun: bool = False  # the entity is a pronoun here
    clear: bool = True  # a pronoun after this clause can only mean the entity


# After "she sailed under Ada Brock" a "she" could be either, after "Abel Brock" it could not.
RIVALS = {HE: town.MEN, SHE: [*town.WOMEN, "Widow"], IT: []}


# --------------------------------------------------------------------------- chance
# Only Random.random() is promised to stay the same in later Pythons, so all rests on it.


def pick(rng, items):
    return items[int(rng.random() * len(items))]


def shuffled(rng, items):
    return sorted(items, key=lambda _: rng.random())


def deck(rng, cards):
    """Deals all cards in random order, shuffles, and goes on: each is used about as often."""
    last = None
    while True:
        hand = shuffled(rng, cards)
        if hand[0] == last:  # not the same card twice running
            hand.append(hand.pop(0))
        yield from hand
        last = hand[-1]


# --------------------------------------------------------------------------- values


def number(n: int) -> str:
    """1..99 in words."""
    small = town.words(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen"
    )
    tens = town.words("twenty thirty forty fifty sixty seventy eighty ninety")
    if n < 20:
        return small[n - 1]
    return tens[n // 10 - 2] + (f"-{small[n % 10 - 1]}" if n % 10 else "")


def ordinal(n: int) -> str:
    """1..99 in words: "twenty-third"."""
    head, _, last = number(n).rpartition("-")
    odd = {"one": "first", "two": "second", "three": "third", "five": "fifth"}
    odd |= {"eight": "eighth", "nine": "ninth", "twelve": "twelfth"}
    tail = odd.get(last) or (last[:-1] + "ie" if last.endswith("y") else last) + "th"
    return f"{head}-{tail}" if head else tail


def following(season: str, year: int) -> tuple[str, int]:
    """The season after."""
    seasons = list(town.SEASONS)
    at = seasons.index(season) + 1
    return seasons[at % 4], year + at // 4


def possessive(name: str) -> str:
    return name + ("'" if name.endswith("s") else "'s")


class Registers:
    """Deals the names and values of one split, none of which another split can deal."""

    def __init__(self, split: Split):
        self.rng = random.Random(f"harbour town, {split.name}")
        self.dealt = []  # surnames and rigs, which tell people and ships apart in a passage

        def share(*lists):
            # The cut must not depend on the split: one order for all, then slices of it.
            words = list(itertools.product(*lists)) if len(lists) > 1 else lists[0]
            words = shuffled(random.Random("harbour town, words"), words)
            start, stop = (round(end * len(words)) for end in split.words)
            return words[start:stop]

        def names(firsts, seconds):
            return [f"{a} {b}" for a, b in itertools.product(firsts, seconds)]

        self.decks = {
            key: deck(self.rng, cards)
            for key, cards in {
                "surname": ["".join(parts) for parts in share(*town.SURNAMES)],
                "port": ["".join(parts) for parts in share(*town.PORTS)],
                "ship": names(town.SHIPS[0], share(town.SHIPS[1])),
                "quay": names(share(town.QUAYS[0]), town.QUAYS[1]),
                "street": names(share(town.STREETS[0]), town.STREETS[1]),
                "wares": share(town.GOODS),
                "cause": share(town.CAUSES),
                "lapse": share(town.LAPSES),
                "offence": share(town.OFFENCES),
                "office": share(town.OFFICES),
                "rig": town.RIGS,
                "man": town.MEN,
                "woman": town.WOMEN,
                "firm pattern": town.FIRMS,
                "remark": town.REMARKS,
                "opening": town.OPENINGS,
            }.items()
        }

    def deal(self, key: str) -> str:
        card = next(self.decks[key])
        if key in ("surname", "rig"):
            self.dealt.append(card)
        return card

    def between(self, low: int, high: int) -> int:
        return low + int(self.rng.random() * (high - low + 1))

    def value(self, type: str) -> str:
        """An answer of this type: made up by the method of that name, or dealt from its list."""
        return self.deal(type) if type in self.decks else getattr(self, type)()

    def person(self) -> str:
        return f"{self.deal(pick(self.rng, ('man', 'woman')))} {self.deal('surname')}"

    def firm(self) -> str:
        pattern = self.deal("firm pattern")
        return pattern.format(*(self.deal("surname") for _ in range(pattern.count("{}"))))

    def goods(self) -> str:
        return f"{number(self.between(6, 99))} {self.deal('wares')}"

    def tons(self) -> str:
        tons = self.between(38, 320)
        return f"{number(tons) if tons < 100 else tons} tons"

    def hands(self) -> str:
        return f"{number(self.between(4, 24))} {pick(self.rng, ('hands', 'men', 'sailors'))}"

    def money(self) -> str:
        pounds, shillings = self.between(3, 70), self.between(2, 19)
        return pick(
            self.rng,
            (
                f"{number(pounds)} pounds",
                f"{number(pounds)} pounds and {number(shillings)} shillings",
                f"{number(shillings + 20)} shillings",
                f"{number(pounds)} guineas",
            ),
        )

    def date(self, season: str, year: int, with_year: bool) -> str:
        day, month = self.between(1, 28), pick(self.rng, town.SEASONS[season])
        date = pick(self.rng, (f"{day} {month}", f"the {ordinal(day)} of {month}"))
        return f"{date} {year}" if with_year else date

    def entity(self, kind: str) -> Entity:
        if kind == "ship":
            name, rig = self.deal("ship"), self.deal("rig")
            return Entity(kind, f"the {rig} {name}", f"the {name}", f"the {rig}", SHE)
        if kind == "officer":
            sex = pick(self.rng, ("man", "woman"))
            surname = self.deal("surname")
            full = f"{self.deal(sex)} {surname}"
            return Entity(kind, full, surname, surname, HE if sex == "man" else SHE)
        name = self.firm()
        return Entity(kind, f"the house of {name}", name, "the firm", IT)


# -------------------------------------------------------------------------- telling


class Teller:
    """Writes passages and questions for one split."""

    def __init__(self, split: Split):
        self.split = split
        self.registers = Registers(split)
        self.rng = rng = self.registers.rng
        self.sentences = {r.name: deck(rng, r.sentences) for r in town.RELATIONS}
        self.questions = {
            r.name: deck(rng, r.questions + r.test_questions * (split.name == "test"))
            for r in town.RELATIONS
        }
        self.relations = {}  # by kind of entity, in groups of one type of answer
        for kind in ("ship", "officer", "firm"):
            of_kind = [r for r in town.RELATIONS if r.kind == kind]
            types = dict.fromkeys(r.type for r in of_kind)
            groups = [[r for r in of_kind if r.type == type] for type in types]
            self.relations[kind] = deck(rng, groups)
        self.casts = deck(rng, CASTS)
        self.asked = Counter()

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def facts(self, season: str, year: int) -> list[Fact]:
        """The facts of a passage, in the order in which they will be told."""
        groups = []
        for kind, entities, relations in next(self.casts):
            told = []
            while len(told) < relations:
                # Relations of one type together, most of the time: each distracts from the other.
                alike = shuffled(self.rng, next(self.relations[kind]))
                alike = [r for r in alike[: 1 if self.chance(0.2) else None] if r not in told]
                told += alike[: relations - len(told)]
            cast = [self.registers.entity(kind) for _ in range(entities)]
            facts = []
            for entity, relation in itertools.product(cast, told):
                if relation.type == "date" and kind == "officer":  # in service for years
                    served = self.registers.between(1, 14)
                    of_year = pick(self.rng, list(town.SEASONS))
                    answer = self.registers.date(of_year, year - served, with_year=True)
                elif relation.type == "date":
                    when = season, year
                    if relation.name in town.LATER:
                        when = following(season, year)
                    answer = self.registers.date(*when, with_year=self.chance(0.5))
                else:
                    answer = self.registers.value(relation.type)
                facts.append(Fact(entity, relation, answer))
            # An entity need not have an entry under every heading.
            facts = [fact for fact in facts if not self.chance(0.12)]
            groups.append(self.ordered(facts))
        return [fact for group in shuffled(self.rng, groups) for fact in group]

    def ordered(self, facts: list[Fact]) -> list[Fact]:
        """Entity by entity, relation by relation, or in no order."""
        plan = self.rng.random()
        facts = shuffled(self.rng, facts)
        if plan < 0.45:
            firsts = [fact.entity for fact in facts]
            return sorted(facts, key=lambda fact: firsts.index(fact.entity))
        if plan < 0.8:
            firsts = [fact.relation for fact in facts]
            return sorted(facts, key=lambda fact: firsts.index(fact.relation))
        return facts

    def clause(self, fact: Fact, known: list[Entity], last: Clause | None) -> Clause:
        """One fact as a clause; `last` is the clause before, where a pronoun can reach it."""
        entity, forms = fact.entity, self.sentences[fact.relation.name]
        form = next(forms)
        while entity not in known and "{P}" in form:  # nobody is introduced by a possessive
            form = next(forms)
        same = last is not None and last.entity is entity
        if entity not in known:
            noun = entity.full
        elif entity.kind == "firm" and not same:  # "the firm" might be any of them
            noun = entity.name
        else:
            noun = pick(self.rng, (entity.name, entity.short))
        pronoun = same and last.clear and "{N}" not in form and self.chance(0.75)
        subject, thing, owner = entity.pronouns if pronoun else (noun, noun, possessive(noun))
        text = form.format(
            S=subject, O=thing, P=owner, N=noun, her=entity.pronouns[2], a=fact.answer
        )
        return Clause(
            text=text,
            entity=entity,
            relation=fact.relation,
            subject=subject if form.startswith("{S} ") else None,
            pronoun=pronoun,
            clear=fact.answer.split()[0] not in RIVALS[entity.pronouns],
        )

    def joined(self, one: Clause, two: Clause) -> str | None:
        """Two clauses as one sentence, or None where they do not go together."""
        if "," in one.text + two.text or "and Company" in one.text:
            return None
        if one.entity is two.entity and one.subject and two.subject:
            predicate = two.text.removeprefix(f"{two.subject} ")
            phrase = one.relation.type in ("cause", "lapse", "offence")
            if not phrase and (one.pronoun or self.chance(0.5)):
                return f"{one.text} and {predicate}"
            if one.pronoun:
                return None
            who = "who" if one.entity.kind == "officer" else "which"
            return f"{one.subject}, {who} {one.text.removeprefix(f'{one.subject} ')}, {predicate}"
        if one.entity is two.entity and two.pronoun:
            return f"{one.text}, and {two.text}"
        if one.entity is not two.entity and one.relation is two.relation:
            link = pick(self.rng, (", while ", ", while ", "; ", ", and "))
            if two.text.startswith(("on ", "before ", "from ")):
                link = "; "
            return one.text + link + two.text
        return None

    def passage(self) -> tuple[str, list[Fact]]:
        season, year = pick(self.rng, list(town.SEASONS)), self.registers.between(1690, 1790)
        facts = self.facts(season, year)
        sentences, known = [], []
        last = None  # the clause before this one
        single = False  # and it is a sentence by itself, so that another may be joined to it
        if self.chance(0.8):
            opening = self.registers.deal("opening")
            sentences.append(opening.format(season=season, year=year))
        for fact in facts:
            entity = fact.entity
            if known and entity not in known and self.chance(0.3):
                text = pick(self.rng, town.INTRODUCTIONS[entity.kind]).format(full=entity.full)
                sentences.append(text)
                known.append(entity)
                last, single = Clause(text, entity), False
            clause = self.clause(fact, known, last)
            sentence = self.joined(last, clause) if single and self.chance(0.65) else None
            if sentence:
                sentences[-1] = sentence
                single = False
            else:
                lead = f"{pick(self.rng, town.LEADS)} " if last and self.chance(0.1) else ""
                sentences.append(lead + clause.text)
                single = not lead
            known.append(entity)
            # After a sentence about two of them, neither "she" nor "the firm" would be plain.
            last = None if sentence and last.entity is not entity else clause
            if self.chance(0.1):
                sentences.append(self.registers.deal("remark"))
                last, single = None, False
        text = " ".join(s[0].upper() + s[1:].rstrip(".") + "." for s in sentences)
        return text, facts

    def paragraph(self) -> dict:
        """A passage with its questions; tried again until every condition holds."""
        while True:
            self.registers.dealt.clear()
            context, facts = self.passage()
            askable = [fact for fact in facts if distractors(fact, facts)]
            askable = [fact for fact in askable if len(mentions(fact.answer, context)) == 1]
            dealt = self.registers.dealt
            if (
                len(context.split()) in WORDS_IN_PASSAGE
                and len(askable) >= self.split.questions
                and len(dealt) == len(set(dealt))
            ):
                break
        # The relations asked least so far come first: all are asked about as often.
        askable.sort(key=lambda fact: (self.asked[fact.relation.name], self.rng.random()))
        chosen = askable[: self.split.questions]
        self.asked.update(fact.relation.name for fact in chosen)
        return {"context": context, "facts": facts, "questions": [self.ask(f) for f in chosen]}

    def ask(self, fact: Fact) -> tuple[Fact, str, str]:
        form = next(self.questions[fact.relation.name])
        return fact, form, form.format(e=pick(self.rng, (fact.entity.full, fact.entity.name)))


def distractors(fact: Fact, facts: list[Fact]) -> list[str]:
    """The other answers in the passage that are of the type of this one."""
    return [
        other.answer
        for other in facts
        if other.relation.type == fact.relation.type and other.answer != fact.answer
    ]


def mentions(text: str, context: str) -> list[int]:
    """Where `text` stands in `context` as whole words, in either case."""
    return [m.start() for m in re.finditer(rf"(?<![\w-]){re.escape(text)}(?![\w-])", context, re.I)]


def references(fact: Fact, context: str, several: bool) -> list[dict]:
    """The gold answers: the answer as written, then, if asked for, spans equally right."""
    (start,) = mentions(fact.answer, context)
    end = start + len(fact.answer)
    spans = [(start, end)]
    if several:
        kind = fact.relation.type
        if kind == "person" and context[:start].endswith("Captain "):
            spans.append((start - len("Captain "), end))
        if kind == "date" and fact.answer[-4:].isdigit():
            spans.append((start, end - len(" 1731")))
        if kind == "goods":
            spans.append((start + fact.answer.index(" of ") + len(" of "), end))
            spans.append((start + fact.answer.index(" ") + 1, end))
        if kind in ("tons", "hands"):
            spans.append((start, start + fact.answer.index(" ")))
    return [{"text": context[a:b], "answer_start": a} for a, b in spans]


# ------------------------------------------------------------------------- the files


def build(split: Split) -> list[dict]:
    """The articles of a split, with the facts behind them, which the tests want to see."""
    teller = Teller(split)
    articles = []
    while len(articles) < split.articles:
        paragraphs = [teller.paragraph() for _ in range(PARAGRAPHS)]
        title = paragraphs[0]["facts"][0].entity.name.removeprefix("the ")
        if title not in [article["title"] for article in articles]:
            articles.append({"title": title, "paragraphs": paragraphs})
    return articles


def squad(split: Split, articles: list[dict]) -> dict:
    """The same in the layout of SQuAD 1.1; a question's id ends with its relation."""
    data = []
    for a, article in enumerate(articles):
        paragraphs = []
        for p, paragraph in enumerate(article["paragraphs"]):
            qas = [
                {
                    "id": f"{split.name}-{a:03d}-{p}-{q}-{fact.relation.name}",
                    "question": question,
                    "answers": references(fact, paragraph["context"], split.name == "test"),
                }
                for q, (fact, _, question) in enumerate(paragraph["questions"])
            ]
            paragraphs.append({"context": paragraph["context"], "qas": qas})
        data.append({"title": article["title"], "paragraphs": paragraphs})
    return {"version": "1.1", "data": data}


def write(to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for split in SPLITS.values():
        text = json.dumps(squad(split, build(split)), ensure_ascii=False, indent=1)
        (to / f"{split.name}.json").write_bytes(f"{text}\n".encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the embedded corpus.")
    parser.add_argument("--to", type=Path, default=CORPUS, help="folder (default: %(default)s)")
    write(parser.parse_args().to)
