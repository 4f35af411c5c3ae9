"""Pictures of numbers, without a server."""

from __future__ import annotations

import math
import re

import pytest
from finetune_ui.drawing import charts, graph
from finetune_ui.drawing.sparkline import HEIGHT, WIDTH, sparkline
from finetune_ui.loading import lines

from tests.unit.ui.api_server import Object, job


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", path)]


def test_a_sparkline_falls_with_the_loss_and_stays_in_its_box() -> None:
    found = places(sparkline([(step, 100.0 / step) for step in range(1, 257)]))
    assert len(found) < 60
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in found)
    assert found[0][0] < found[-1][0]
    assert found[0][1] < found[-1][1]  # y grows downwards


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, math.nan), (2, 2.0)]])
def test_too_few_values_are_no_curve(points: list[tuple[int, float]]) -> None:
    assert sparkline(points) == ""


def test_a_flat_curve_is_a_line() -> None:
    assert len({y for _, y in places(sparkline([(1, 2.0), (2, 2.0), (3, 2.0)]))}) == 1


def test_values_that_are_no_numbers_are_gaps() -> None:
    from finetune_api.curves import pack

    one = job("one", progress={"curves": pack({"loss": [(1, 2.0), (2, math.nan), (3, 1.0)]})})
    [chart] = charts.of_job(one)
    assert chart["data"][:2] == [[1, 2, 3], [2.0, None, 1.0]]


def test_curves_of_a_newer_release_do_not_break_the_page() -> None:
    assert charts.of_job(job("one", progress={"curves": {"loss": "9;what;ever"}})) == []


def using(name: str, **model: str) -> Object:
    made = job(name)
    made["spec"]["model"] = model
    return made


def test_a_graph_leads_from_left_to_right() -> None:
    every = [job("base"), using("next", fromJob="base"), using("last", fromJob="next"), job("other")]
    drawn = graph.draw(every, "next")
    assert drawn is not None
    across = {box["name"]: box["x"] for box in drawn["boxes"]}
    assert across["base"] < across["next"] < across["last"]
    assert "other" not in across
    assert len(drawn["lines"]) == 2
    assert graph.draw(every, "other") is None


def test_jobs_in_a_circle_and_jobs_that_are_gone_are_drawn() -> None:
    drawn = graph.draw([using("a", fromJob="b"), using("b", fromJob="a"), using("c", fromJob="gone")], "a")
    assert drawn is not None
    assert {box["name"] for box in drawn["boxes"]} == {"a", "b"}
    drawn = graph.draw([using("c", fromJob="gone")], "c")
    assert drawn is not None
    assert {box["name"]: box["exists"] for box in drawn["boxes"]} == {"gone": False, "c": True}


@pytest.mark.parametrize(
    ("artifact", "stage", "words"),
    [
        ({"kind": "model"}, "sft", 'AutoModelForCausalLM.from_pretrained("one")'),
        ({"kind": "model"}, "rm", 'AutoModelForSequenceClassification.from_pretrained("one")'),
        ({"kind": "adapter", "base": "hf://a/b"}, "rm", "num_labels=1)  # BASE: a copy of hf://a/b"),
        ({"kind": "adapter", "baseAdapter": True}, "sft", "one/README.md"),
    ],
)
def test_the_lines_that_load_an_artifact_fit_its_kind(artifact: Object, stage: str, words: str) -> None:
    made = job("one", artifact=artifact)
    made["spec"]["stage"] = stage
    found = lines(made)
    assert found is not None
    assert words in found["python"]
    compile(found["python"], "lines", "exec")
