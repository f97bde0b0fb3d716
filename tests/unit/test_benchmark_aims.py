"""Aims of the benchmarks: judged by the medians that the table shows, and written where pages have a place for them."""

from pathlib import Path

import pytest

from benchmarks import pages, table
from benchmarks.aims import judge
from benchmarks.model import Aim, Contender, Figure, Row
from benchmarks.rows import ROWS
from benchmarks.running import Line

RATE = Figure("rate", "tasks per second", "/s", more_is_better=True)
TIME = Figure("time", "time", "ms")
TWICE = Figure("twice", "the same with twice as many", "ms")


def row(*aims: Aim) -> Row:
    """Return a row with these aims; "peer" has two ways to do it."""
    contenders = (Contender("ours"), Contender("a", best_of="peer"), Contender("b", best_of="peer"))
    return Row(
        name="row", title="work", figures=(RATE, TIME, TWICE), contenders=contenders, aims=aims, full={}, quick={}
    )


def lines(made: Row) -> list[Line]:
    """Return what was measured: ours does 80 a second in 2 ms, the better peer 10 in 1 ms."""
    ours, slow, fast = (Line(contender) for contender in made.contenders)
    ours.values.update(rate=[80.0, 70.0, 90.0], time=[0.002, 0.001, 0.003], twice=[0.003, 0.003, 0.003])
    slow.values.update(rate=[5.0], time=[0.005])
    fast.values.update(rate=[10.0, 10.0, 10.0], time=[0.001, 0.001, 0.001])
    return [ours, slow, fast]


@pytest.mark.parametrize(
    ("aim", "value", "met", "rounds", "cell"),
    [
        (Aim(figure="rate", kind="times", bound=8, beside="peer"), 8.0, True, (2, 3), "≥ 8: 8.00 met"),
        (Aim(figure="rate", kind="times", bound=9, beside="peer"), 8.0, False, (1, 3), "≥ 9: 8.00 MISSED"),
        (Aim(figure="time", kind="within", bound=2, beside="peer"), 2.0, True, (2, 3), "≤ 2: 2.00 met"),
        (Aim(figure="time", kind="within", bound=1.2, beside="b"), 2.0, False, (1, 3), "≤ 1.2: 2.00 MISSED"),
        (Aim(figure="twice", kind="within", bound=1.5, of="time"), 1.5, True, (2, 3), "≤ 1.5: 1.50 met"),
        (Aim(figure="time", kind="at most", bound=0.002), 0.002, True, (2, 3), "≤ 2 ms: 2.00 met"),
        (Aim(figure="time", kind="at most", bound=0.0015), 0.002, False, (1, 3), "≤ 1.5 ms: 2.00 MISSED"),
    ],
)
def test_an_aim_is_judged_by_medians(
    aim: Aim, value: float, met: bool, rounds: tuple[int, int], cell: str
) -> None:
    """Ours beside the best of those meant, in the direction in which the figure is better."""
    made = row(aim)
    [verdict] = judge(made, lines(made))
    assert verdict.value == pytest.approx(value)
    assert (verdict.met, verdict.rounds, verdict.cell()) == (met, rounds, cell)


def test_what_was_not_measured_is_not_met() -> None:
    """An aim without figures says so, and is not counted among those that are met."""
    made = row(Aim(figure="rate", kind="times", bound=8, beside="peer"))
    [verdict] = judge(made, [Line(contender, why="not installed") for contender in made.contenders])
    assert (verdict.met, verdict.cell()) == (None, "≥ 8: –")
    assert "meets 0 of 1" in table.summary([(verdict, {})])


def test_every_aim_names_what_there_is() -> None:
    """The aims of all rows are about figures and contenders that the row has, and the table has room for the names."""
    for each in ROWS:
        figures = {figure.key for figure in each.figures}
        names = {name for contender in each.contenders for name in (contender.name, contender.best_of)}
        for aim in each.aims:
            assert {aim.figure, aim.of or aim.figure} <= figures, each.name
            assert {aim.ours, aim.beside} - {None} <= names, each.name
            assert (aim.kind == "at most") == (aim.beside is None and aim.of is None), each.name
        assert all(len(contender.name) <= 41 for contender in each.contenders), each.name


def test_a_page_takes_what_it_has_a_place_for(tmp_path: Path) -> None:
    """What stands between the marks is replaced, as often as one likes; the rest of the page stays."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench:table -->\nold\n<!-- /bench:table -->\nafter\n")
    for text in (r"new \1" + "\n", "newer\n"):
        assert pages.write(page, {"table": text, "aims": "not here"}) == ["table"]
        assert page.read_text() == f"before\n<!-- bench:table -->\n{text}<!-- /bench:table -->\nafter\n"


@pytest.mark.parametrize("text", ["no place\n", "<!-- bench:table -->\nits end is missing\n"])
def test_a_page_without_a_place_is_refused(tmp_path: Path, text: str) -> None:
    """A page that would silently stay as it is, or lose its rest, is an error."""
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"page\.md"):
        pages.write(page, {"table": "new\n"})
    assert page.read_text() == text


def test_the_pages_have_their_places() -> None:
    """The pages that a full run refreshes have a place for what it gives."""
    root = Path(__file__).resolve().parents[2]
    places = {"docs/explanation/performance.md": ("aims", "machine", "table"), "README.md": ("headline",)}
    for name, parts in places.items():
        text = (root / name).read_text("utf-8")
        for part in parts:
            assert text.count(f"<!-- bench:{part} -->\n") == text.count(f"<!-- /bench:{part} -->") == 1, (name, part)
