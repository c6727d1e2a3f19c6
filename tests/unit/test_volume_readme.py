"""The page about how a volume moves shows the machine as it is."""

from __future__ import annotations

from pathlib import Path

import migrator.volume
from migrator.volume import states
from tests import draw_machine

README = Path(migrator.volume.__file__).parent / "README.rst"
BEGIN, END = (f".. {edge} of what tests/draw_machine.py prints\n" for edge in ("begin", "end"))


def test_the_readme_holds_exactly_what_the_script_draws() -> None:
    """If this fails: print it with ``python -m tests.draw_machine`` and put it between the two comments."""
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.partition(BEGIN)[2].partition(END)[0] == f"\n{draw_machine.drawn()}\n"


def test_the_drawing_has_every_step_of_every_plan_and_the_line_where_it_is() -> None:
    for plan in states.PLANS.values():
        picture = draw_machine.drawn().partition(f"``{plan.name}``::\n\n")[2].partition("\n\n")[0].splitlines()
        names = [line.split()[0] for line in picture[2:]]
        line = names[plan.line]
        assert line.startswith("===")
        assert [name for name in names if name != line] == [step.name for step in plan.steps]


def test_the_readme_says_of_every_step_what_it_leaves() -> None:
    table = README.read_text(encoding="utf-8").partition("it leaves ")[2].partition("Recovery")[0]
    steps = {step.name for plan in states.PLANS.values() for step in plan.steps}
    rows = {line.split()[0] for line in table.splitlines() if line and line[0].isalpha()}
    assert rows | {"swap_by_compute"} == steps
