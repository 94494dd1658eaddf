"""What a search found: the trades that nothing beats, as a section of the report and as rows for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mogu.evaluate.figures import figure, numbers_table, scroll
from mogu.evaluate.plots import Spot, legend, plane_plot
from mogu.evaluate.svg import Element, element, number, percent
from mogu.statistics import wilson

Summary = Mapping[str, Any]

HEADER = (
    "",
    "trial",
    "shift",
    "malicious complied",
    "benign refused",
    "borderline refused",
    "degenerate",
    "KL",
    "net benefit",
    "changed in the recipe",
)


def search_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Header and rows: the base, then the Pareto set by number; the recipe's own member and the picked one are marked.

    Args:
        found: ``search`` of a summary, or what ``pareto.json`` holds.
    """
    rows = [list(HEADER), _row("base", found["base"], found["prompts"])]
    for index, member in enumerate(found["members"], 1):
        rows.append(_row(" ".join([str(index), *_marks(found, index)]), member, found["prompts"]))
    return rows


def _marks(found: Mapping[str, Any], index: int) -> list[str]:
    return [mark for mark in ("recipe", "picked") if found[mark] == index]


def _row(name: str, one: Mapping[str, Any], prompts: Mapping[str, int]) -> list[str]:
    shares = [
        _share(one[key], prompts[kind])
        for key, kind in (
            ("complied", "malicious"),
            ("benign_refused", "benign"),
            ("borderline_refused", "borderline"),
        )
    ]
    shares.append(percent(one["degenerate"]))
    if "trial" not in one:  # the base
        return [name, "–", "–", *shares, "0", "–", "–"]
    changes = ", ".join(f"{key} {number(value)}" for key, value in one["changes"].items())
    return [
        name,
        str(one["trial"]),
        number(one["shift"]),
        *shares,
        f"{one['kl']:.3f}",
        f"{one['benefit']:+.2f}".replace("-", "−"),
        changes or "nothing",
    ]


def _share(rate: float, n: int) -> str:
    if not n:
        return "–"
    span = wilson(round(rate * n), n)
    return f"{percent(rate)} ({100 * span.low:.0f}–{100 * span.high:.0f})"


def search(summary: Summary) -> Element | None:
    """Section: the Pareto set of a search on validation prompts, and what became of every trial; None without one."""
    found = summary.get("search")
    if not found:
        return None
    rows = search_table(found)
    figures = [figure("Trades found", _plot(found), _CAPTION, legend(_spots(found)))]
    return element(
        "section",
        element("h2", "What the search found on validation data"),
        element("p", _remark(found), class_="note"),
        scroll(numbers_table(rows[0], rows[1:]), "Pareto set"),
        element("div", *figures, class_="figures"),
        element("details", element("summary", "All trials"), scroll(_trials(found), "All trials")),
    )


_CAPTION = (
    "Each number is a member of the Pareto set: none is as low as it on malicious prompts answered, harmless ones "
    "refused and KL from the base, and lower on one (the recipe's own is shown in any case). Bars are 95% intervals of "
    "chance in the prompts. KL is not drawn: a member that looks beaten here is nearer to the base."
)


def _remark(found: Mapping[str, Any]) -> str:
    over = len(found["trials"])
    given_up = sum(1 for trial in found["trials"] if trial["given_up"])
    how = f"by the rule “{found['rule']}”" if not found["rule"].isdecimal() else "by its number"
    return (
        f"{over} trials, {given_up} of them given up early; number {found['picked']} was picked {how}. The figures are "
        "those that it was chosen by, on few prompts, so they flatter it: the results on held-out prompts count."
    )


def _plot(found: Mapping[str, Any]) -> Element:
    spots = _spots(found)
    says = "; ".join(f"{s.name}: answers {percent(s.y[0])}, refuses {percent(s.x[0])}" for s in spots)
    return plane_plot(
        "Trades found", says, spots, "harmless refused (← better)", "malicious answered coherently (← better)"
    )


def _spots(found: Mapping[str, Any]) -> list[Spot]:
    spots = [_spot("base", "ink-0", "B", found["base"], found["prompts"], "square")]
    for index, member in enumerate(found["members"], 1):
        marks = _marks(found, index)
        ink = "ink-1" if "picked" in marks else "ink-2" if "recipe" in marks else "ink-5"
        name = ", ".join([f"number {index}", *marks])
        spots.append(_spot(name, ink, str(index), member, found["prompts"], "circle"))
    return spots


def _spot(name: str, ink: str, tag: str, one: Mapping[str, Any], prompts: Mapping[str, int], marker: str) -> Spot:
    refused = [
        wilson(round(one[f"{kind}_refused"] * prompts[kind]), prompts[kind]) for kind in ("benign", "borderline")
    ]
    over = (one["benign_refused"] + one["borderline_refused"]) / 2
    answered = wilson(round(one["complied"] * prompts["malicious"]), prompts["malicious"])
    x = (over, sum(span.low for span in refused) / 2, sum(span.high for span in refused) / 2)
    return Spot(name, ink, tag, x, (one["complied"], answered.low, answered.high), marker)


def _trials(found: Mapping[str, Any]) -> Element:
    rows = [_trial(trial) for trial in found["trials"]]
    return numbers_table(["trial", "changed in the recipe", "glad", "unwill", "seconds", "came to"], rows)


def _trial(trial: Mapping[str, Any]) -> Sequence[str]:
    changes = ", ".join(f"{key} {number(value)}" for key, value in trial["changes"].items())
    responders = []
    for stage in ("glad", "unwill"):
        one = trial["responders"].get(stage)
        responders.append(f"{percent(one['on_target'])} on target after {one['pairs']} pairs" if one else "–")
    came_to = f"given up: {trial['given_up']}" if trial["given_up"] else f"{len(trial['members'])} shifts measured"
    return [str(trial["number"]), changes or "nothing", *responders, f"{trial['seconds']:.0f}", came_to]
