"""The report's page in a real browser: figures first, then the reader, on a desk and on a phone, and nothing from elsewhere."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dasd_megatron.artifacts.artifact import Artifact
from tests.helpers.axe import violations
from tests.helpers.browser import PHONE, Page, browser
from tests.helpers.small_run import artifacts

pytestmark = [pytest.mark.full, pytest.mark.network]
CARDS = ".reader .card"


@pytest.fixture(scope="module")
def desk() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def phone() -> Iterator[Page]:
    with browser(PHONE) as page:
        yield page


def rows(calm: Path, step: str, table: str, columns: list[str]) -> list[dict[str, Any]]:
    """Of what a step made; all columns where none is named."""
    return list(Artifact(artifacts(calm)[step].folder).rows(table, columns or None))


def test_figures_come_first(calm: Path, desk: Page) -> None:
    desk.open(calm / "report.html")
    assert desk.run("scrollY") == 0
    titles = desk.texts("figcaption")
    assert titles[:2] == ["Accuracy by stage", "Length and truncation by stage"]
    assert all(figure.size["height"] > 100 for figure in desk.all("figure svg"))
    places = [desk.one(selector).location["y"] for selector in ("figure", "table", "#reader")]
    assert places == sorted(places)
    assert desk.errors == []
    assert desk.run("performance.getEntriesByType('resource').length") == 0


def test_it_says_first_what_was_gained(calm: Path, desk: Page) -> None:
    desk.open(calm / "report.html")
    summary = json.loads((calm / "summary.json").read_text())
    facts = summary["benchmarks"]["arithmetic"]
    gain, measures = facts["gain"]["1"], facts["measures"]
    assert gain["difference"] == pytest.approx(
        measures["mixed_policy"]["1"]["accuracy"]["mean"] - measures["student"]["1"]["accuracy"]["mean"]
    )
    (line,) = desk.texts(".headline li")
    before, after = (f"{100 * measures[model]['1']['accuracy']['mean']:.1f}%" for model in ("student", "mixed_policy"))
    assert line.startswith(f"arithmetic at T=1: {100 * gain['difference']:+.1f} points (95% interval ")
    assert f": {after} right, before {before}; the teacher " in line
    lead = desk.texts("p.lead")[0]
    assert lead.startswith("teacher distilled into student by")
    assert "CPU core" in lead
    assert desk.one(".headline").location["y"] < 300
    assert "well-formed" in desk.texts("th")
    assert all(0 <= row["1"]["well_formed"] <= 1 for row in measures.values())


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_everyone_can_read_it(calm: Path, desk: Page, colors: str) -> None:
    desk.prefer(colors)
    desk.open(calm / "report.html")
    assert violations(desk) == []
    background = desk.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (colors == "light")
    desk.prefer("light")


def test_it_is_printed_without_what_has_to_be_clicked(calm: Path, desk: Page) -> None:
    desk.open(calm / "report.html")
    desk.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not desk.one("#reader").is_displayed()
    assert desk.one("table").is_displayed()
    printed = desk.driver.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert base64.b64decode(printed).startswith(b"%PDF")
    desk.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_answers_side_by_side(calm: Path, desk: Page) -> None:
    """Of one problem every model's answers, with what the grader took for the answer and said of it."""
    desk.open(calm / "report.html")
    desk.all(".reader .items button")[1].click()
    uuid = desk.run("decodeURIComponent(location.hash.split('/')[2])")
    (problem,) = (row for row in rows(calm, "benchmark_arithmetic", "prompts", []) if row["uuid"] == uuid)
    assert desk.one(".reader .prompt").text == problem["input"]
    assert desk.one(".reader .reference").text == f"Reference: {problem['answer']}"
    titles, texts, facts = (desk.texts(f"{CARDS} {part}") for part in ("h3", ".text", ".facts"))
    shown = iter(zip(titles, texts, facts, strict=True))
    for model in ("student", "low_temperature", "high_temperature", "mixed_policy", "teacher"):
        answers = [row for row in rows(calm, f"grade_{model}_arithmetic", "answers", []) if row["uuid"] == uuid]
        for answer in sorted(answers, key=lambda row: row["temperature"]):
            title, text, fact = next(shown)
            assert title.startswith(model.replace("_", " "))
            assert text == answer["text"]
            assert ("right" in title) == answer["correct"]
            assert answer["extracted"] is None or f"answer found: {answer['extracted']}" in fact
    assert not list(shown)


def test_filters_by_mark_and_search(calm: Path, desk: Page) -> None:
    desk.open(calm / "report.html")
    total = len(desk.all(".reader .items li"))
    desk.choose(".reader .marks", "wrong")
    assert all("wrong" in title for title in desk.texts(f"{CARDS} h3"))
    desk.choose(".reader .marks", "all responses")
    problem = desk.texts(".reader .prompt")[0]
    desk.search(problem)
    found = desk.texts(".reader .items li")
    assert 1 <= len(found) < total
    assert all(text.splitlines()[0] == problem for text in found)
    assert desk.texts(".reader .prompt mark") == [problem]
    desk.search("no prompt says this")
    assert desk.texts(".reader .item") == ["Nothing is found."]
    assert desk.one(".reader .found").text.startswith("0 of ")


def test_candidates_are_shaded_as_they_were_scored(calm: Path, desk: Page) -> None:
    """Taken and left are those of the step, and a sentence's shade is the difference that its title says."""
    desk.open(calm / "report.html")
    desk.choose(".reader .view", "low temperature: candidates")
    select = Artifact(artifacts(calm)["select_low_temperature"].folder)
    taken = {(row["input"], row["text"]) for row in select.rows("responses", ["input", "text"])}
    prompt = desk.one(".reader .prompt").text
    for card in desk.all(CARDS):
        text = card.find_element("css selector", ".text").text
        assert ("taken" in card.find_element("css selector", "h3").text) == ((prompt, text) in taken)
    sentence = desk.one(".reader .shaded")
    sentence.click()
    said = desk.one(".reader .sentence").text
    assert said == sentence.get_attribute("title")
    teacher, student = map(float, re.findall(r"p\(\w+\) ([\d.]+)", said))
    color = sentence.value_of_css_property("background-color")
    blue, orange = "rgba(37, 99, 235", "rgba(234, 88, 12"
    assert color.startswith(blue if teacher > student else orange)


def test_where_an_answer_was_cut(calm: Path, desk: Page) -> None:
    desk.open(calm / "report.html")
    desk.choose(".reader .view", "mixed policy: responses")
    made, own = desk.all(CARDS)
    student, teacher = (made.find_element("css selector", f".text .{name}").text for name in ("student", "teacher"))
    kept = {
        row["text"]: row["prefix_bytes"]
        for row in rows(calm, "filter_mixed_policy", "responses", ["text", "prefix_bytes"])
    }
    assert kept[student + teacher] == len(student.encode())
    answers = {row["text"] for row in rows(calm, "rollout_mixed_policy", "responses", ["text"])}
    assert own.find_element("css selector", ".text").text in answers
    assert own.find_element("css selector", ".text .student").text == student


def test_a_link_leads_to_a_prompt(calm: Path, desk: Page) -> None:
    desk.open(calm / "report.html")
    desk.choose(".reader .view", "high temperature: candidates")
    desk.one(".reader .next").click()
    prompt, fragment = desk.one(".reader .prompt").text, desk.run("location.hash")
    desk.open(calm / "report.html", fragment)
    assert desk.one(".reader .prompt").text == prompt
    assert desk.run("document.querySelector('.reader .view').selectedOptions[0].text") == "high temperature: candidates"
    desk.one(".reader .previous").click()
    assert desk.one(".reader .prompt").text != prompt


def test_on_a_phone(calm: Path, phone: Page) -> None:
    """Nothing is wider than the screen, and fingers reach everything."""
    phone.open(calm / "report.html")
    assert phone.run("document.documentElement.scrollWidth") <= PHONE[0]
    phone.choose(".reader .view", "low temperature: candidates")
    lefts = {card.rect["x"] for card in phone.all(CARDS)}
    assert len(lefts) == 1  # one below another
    sentence = phone.one(".reader .shaded")
    phone.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", sentence)
    sentence.click()
    assert phone.one(".reader .sentence").text.startswith("p(teacher) ")
    assert phone.run("document.documentElement.scrollWidth") <= PHONE[0]
    assert phone.errors == []
