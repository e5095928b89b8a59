"""report.html in a real browser, and report.md; hostile data stays text in both."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from qa import comparison, page, pictures
from qa.methods import METHODS
from qa.squad import Example
from tests.test_comparison import answers, history, make_examples, run

ROOT = Path(__file__).parent.parent
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
SEARCH = {
    "metric": "eval_f1", "n_trials": 3, "seconds": 12.0, "best_value": 60.0, "best_trial": 1,
    "importances": {"r": 0.25, "learning_rate": 0.75},
    "trials": [
        {"number": 0, "state": "complete", "value": 50.0},
        {"number": 1, "state": "complete", "value": 60.0},
        {"number": 2, "state": "pruned", "value": 20.0},
    ],
}  # fmt: skip


@contextmanager
def browser_page(path, **options):
    """A page of Debian's Chromium with `path` in it; fails on anything said in its console."""
    program = shutil.which("chromium")
    if not program:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    said = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        opened = browser.new_page(**options)
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda request: said.append(request.url))
        opened.goto(Path(path).as_uri())
        yield opened
        browser.close()
    assert said == [Path(path).as_uri()], "no errors, and no request but the page itself"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A folder with the report of four runs, one of them searched, on hostile examples."""
    folder = tmp_path_factory.mktemp("report")
    context = f"😀 Before {HOSTILE} the red ship came the red ship, and after."
    start = context.rindex("red ship")
    hostile = Example("evil", HOSTILE, context, f"Which ship? {HOSTILE}", (("red ship", start),))
    examples = [*make_examples(), hostile]
    runs = [
        run("lora", search=SEARCH, environment={"torch": "2"}),
        run("prompt_tuning", trainable_params=1000, environment={"torch": "2"}),
        run(HOSTILE, environment={"torch": HOSTILE}),
        run("pretrained", trainable_params=0, head_trained=False),
    ]
    predictions = [answers(examples, share, k) for k, share in enumerate((0.9, 0.85, 0.5, 0.1))]
    for texts, answer in zip(predictions, ("red ship", HOSTILE, "came the red", "")):
        texts["evil"] = answer
    for seed, one in enumerate(runs):
        one["settings"] = {"seed": seed, "cache_dir": HOSTILE}
        rows = [{**row, "eval_loss": 1.0, "train_loss": 2.0} for row in history(50, 60)]
        one["history"] = rows if one["trainable_params"] else []
    made = comparison.compare(runs, predictions, examples, None)
    page.write(folder, made, f"Study {HOSTILE}", examples, predictions)
    return folder


def test_filters_search_and_marks_work(report):
    with browser_page(report / "report.html") as opened:
        shown = opened.locator(".example")
        count = opened.locator("#count")
        assert count.inner_text() == "61 of 61 questions, the first 20" and shown.count() == 20
        opened.click("#more")
        opened.click("#more")
        opened.click("#more")
        assert shown.count() == 61 and not opened.locator("#more").is_visible()

        opened.select_option("#filter", label="only lora right")
        assert shown.count() > 0
        for card in shown.all():
            verdicts = card.locator("li:not(:first-child)").all_inner_texts()
            assert [("✓" in v, "lora:" in v) for v in verdicts] == [
                (True, True),
                *[(False, False)] * 3,
            ]
        opened.select_option("#filter", label="all disagree")
        assert count.inner_text() == "1 of 61 questions"
        opened.select_option("#filter", label="all questions")
        opened.fill("#query", "RED ship")
        assert shown.count() == 1
        card = shown.first
        assert card.locator("mark").all_inner_texts()[-1] == "gold"
        marked = "".join(card.locator("p mark").all_inner_texts())
        assert marked == "red ship", "the gold one of the two, behind an emoji"
        assert "".join(card.locator('p [title="lora"]').all_inner_texts()) == "red ship"
        assert "".join(card.locator('p [title="pretrained"]').all_inner_texts()) == ""
        opened.fill("#query", "nowhere to be found")
        assert shown.count() == 0 and count.inner_text() == "0 of 61 questions"


def test_hostile_data_stays_text(report):
    with browser_page(report / "report.html") as opened:
        opened.fill("#query", "onerror")
        card = opened.locator(".example")
        assert card.count() == 1
        for selector, times in (("h3", 1), ("small", 1), ("p", 1), ("ul", 4)):
            text = card.locator(selector).first.inner_text()
            assert text.count(HOSTILE) >= min(times, 1), selector
        assert opened.title() == f"Study {HOSTILE}"
        assert opened.locator("img").count() == 0 and opened.locator("script").count() == 2
        assert opened.evaluate("window.hacked") is None
        assert HOSTILE in opened.locator("#scores").inner_text()
        assert opened.locator("figure text", has_text=HOSTILE).count() >= 1
        opened.locator("#settings summary").first.click()
        assert HOSTILE in opened.locator("#settings").inner_text()


def test_a_gold_answer_that_stands_nowhere_marks_nothing(tmp_path):
    examples = [
        Example("a", "t", "Orla Venn bought it.", "Who?", (("Ola Venn", -1), ("Venn", 5))),
        Example("b", "t", "", "Who?", (("Venn", -1),)),
    ]
    predictions = [{"a": "Orla", "b": "Venn"}]
    made = comparison.compare([run("lora")], predictions, examples, None)
    path = page.write(tmp_path, made, "Study", examples, predictions)[0]
    with browser_page(path) as opened:
        first, second = opened.locator(".example").all()
        assert first.locator("p mark").all_inner_texts() == ["Venn"]
        assert first.locator("li").first.inner_text() == "gold Ola Venn / Venn"
        assert second.locator("p mark").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_and_can_be_read(report, scheme, width):
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with browser_page(report / "report.html", **options) as opened:
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        colours = opened.evaluate(
            "[document.body, ...document.querySelectorAll('.soft, td, .right, .wrong, a, mark')].map("
            "e => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor])"
        )
        for ink, paper in colours:
            assert contrast(ink, paper) >= 4.5
        assert opened.evaluate("getComputedStyle(document.querySelector('figure text')).fill") == (
            opened.evaluate("getComputedStyle(document.body).color")
        )


def contrast(*colours):
    """WCAG's ratio of two colours as a browser writes them."""
    light = []
    for colour in colours:
        channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_every_picture_says_what_it_shows(report):
    text = (report / "report.html").read_text()
    alts = re.findall(r'<figure role="img" aria-label="([^"]+)"', text)
    assert len(alts) == 3 + 1 + 2 == text.count("<svg ")
    assert any("prompt_tuning 1,000 parameters" in alt for alt in alts)
    assert any("best 60 in trial 1" in alt for alt in alts)
    assert any("learning_rate 75%, r 25%" in alt for alt in alts)
    assert not re.search(r'(src|href)="?(https?:)?//', text), "nothing is fetched"


def test_pictures_are_the_same_each_time_and_escape():
    curve = [("<b>", 1, history(10, 20)), ("b", 2, history(10, 30))]
    style = pictures.styles([run("<b>"), run("b")])
    one = pictures.learning_curves("eval_f1", "F1 <i>", curve, style)
    assert one == pictures.learning_curves("eval_f1", "F1 <i>", curve, style)
    assert "&lt;b&gt;" in one.svg and "<i>" not in one.svg
    assert pictures.learning_curves("eval_f1", "F1", [("a", 1, [])], style) is None


def test_a_methods_colour_is_the_same_on_every_page():
    names = ["lora", "lora-tuned", "lora-20k", *(name for name in METHODS if name != "lora")]
    rows = [run(name, method=name.split("-")[0]) for name in names]
    styles = pictures.styles(rows)
    assert len(set(styles.values())) == len(rows), "all are told apart"
    for some in (rows[:1], rows[2::-1], rows[::7]):
        for name, (colour, _) in pictures.styles(some).items():
            assert colour == styles[name][0]
    assert len({styles[name][0] for name in names[:3]}) == 1
    assert pictures.styles([run("somebody's")])


def test_markdown_has_the_table_and_escapes(report):
    text = (report / "report.md").read_text()
    assert "<script" not in text and "<img" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 5 and {line.count(" | ") for line in rows} == {7}
    assert any(line.startswith("| pretrained †") for line in rows)
    assert "## Findings" in text and "\\* the best of its column" in text


def test_a_predictions_file_gets_the_same_report(tmp_path, monkeypatch, capsys):
    examples = make_examples()
    document = {"data": [
        {"title": e.title, "paragraphs": [{"context": e.context, "qas": [
            {"id": e.id, "question": e.question,
             "answers": [{"text": "word", "answer_start": 0}]}]}]} for e in examples
    ]}  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(document))
    (tmp_path / "p.json").write_text(json.dumps({e.id: "word" for e in examples[:45]}))
    flags = ["--predictions", tmp_path / "p.json", "--references", tmp_path / "r.json"]
    flags += ["--name", "<b>theirs</b>", "--output_dir", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "evaluate.py", *flags], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"exact_match": 75.0, "f1": 75.0}
    assert "<b>theirs</b>" in done.stderr and "75.00" in done.stderr
    made = json.loads((tmp_path / "out/results.json").read_text())
    assert made["rows"][0]["scores"]["bertscore_f1"]["value"] == pytest.approx(75, abs=1e-3)
    assert made["rows"][0]["scores"]["f1"]["low"] < 75 < made["rows"][0]["scores"]["f1"]["high"]
    text = (tmp_path / "out/report.html").read_text()
    assert "&lt;b&gt;theirs&lt;/b&gt;" in text and "<b>theirs" not in text
    assert (tmp_path / "out/report.md").exists()

    def evaluate(*more, status=0):
        monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, flags), *map(str, more)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
        assert stopped.value.code == status
        return capsys.readouterr()

    assert json.loads(evaluate("--json").out) == made
    (tmp_path / "file").write_text("")
    for more, problem in (
        (("--output_dir", tmp_path / "file/sub"), "output_dir: "),
        (("--bertscore_model", tmp_path / "none"), "bertscore_model: "),
        (("--name", ""), "--name: is empty"),
    ):
        line = evaluate(*more, status=2).err.splitlines()[-1]
        assert line.startswith(f"error: {problem}")
    with browser_page(tmp_path / "out/report.html") as opened:
        opened.select_option("#filter", label="all runs wrong")
        assert opened.locator("#count").inner_text() == "15 of 60 questions"
