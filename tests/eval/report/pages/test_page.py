"""The report's files, and the page in a real browser."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from synthetic_grid import experiment_cells, write_grid, write_quality

from eval.experiment import read_experiment
from eval.report.__main__ import main
from eval.report.read.settings import differing_settings, shared_settings
from tddpo_jax.config.cells import cell_name
from tddpo_jax.config.reading import resolve
from tddpo_jax.runs.sampled_answers import SampledAnswer, write_answers

CELLS = experiment_cells(beta=[0.01, 2.5], tau=[0.5, 2.0], seed=[0, 1])
NAMES = [cell_name(cell) for cell in CELLS]
FILES = ("report.html", "report.md", "results.csv", "experiment.json")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid with a diverged, an unfinished and a missing cell, and a score of answers."""
    folder = write_grid(
        tmp_path_factory.mktemp("page") / "my <grid>",
        CELLS,
        pairs=60,
        diverged={NAMES[-1]: 7},
        unfinished=[NAMES[3]],
        missing=[NAMES[5]],
    )
    write_quality(folder, lambda name: 0.7 if name.startswith("td") else 0.5)
    for step in (0, 20):
        row = {"step": step, "row": 3, "prompt": "Why </script>?", "answer": f"At <{step}>."}
        rest = {"finish_reason": "stop", "chosen": "a", "rejected": "b"}
        write_answers(folder / NAMES[0], step, [SampledAnswer(**row, **rest)])
    assert main([str(folder)]) == 0
    return folder


def results(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


class Page(HTMLParser):
    """Addresses, tags and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "srcset", "action", "data", "poster"):
                self.addresses.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


# ---- Files ---------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_its_links_lead_to_files(grid: Path) -> None:
    html = (grid / "report.html").read_text()
    page = Page(html)
    for address in page.addresses:
        if address.startswith(("data:", "#")):
            continue
        assert not re.match(r"[a-z]+:|//|/", address)
        assert (grid / address).exists()
    assert "url(" not in html
    assert "@import" not in html
    assert "my &lt;grid&gt;" in html
    assert page.tags.count("svg") >= 2
    assert "img" not in page.tags


def test_the_answer_comes_first_and_everything_is_there(grid: Path) -> None:
    text = " ".join(Page((grid / "report.html").read_text()).text)
    places = [
        text.index(part)
        for part in (
            "Which loss, beta and tau write best?",
            "Best three",
            "How sure",
            "Score against KL",
            "Curves",
            "All runs",
            "How we know",
            "What to know first",
            "claims",
            "How this was made",
        )
    ]
    assert places == sorted(places)
    for part in (NAMES[0], "0" * 40, "a" * 64, "learning_rate", "13 of 16 runs finished"):
        assert part in text
    assert f"python -m tddpo_jax report '{grid}'" in text


def test_markdown_has_the_tables_and_its_pictures_exist(grid: Path) -> None:
    text = (grid / "report.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 2
    for address in pictures:
        ElementTree.parse(grid / address)
    rows = [line for line in text.splitlines() if line.startswith("| td_dpo")]
    assert rows
    widths = {line.count(" | ") for line in text.splitlines() if f"[{NAMES[0]}]" in line}
    assert len(widths) == 1
    assert "| 4 | Across beta, the variance of TD-DPO's score" in text


def test_results_have_a_row_per_cell(grid: Path) -> None:
    rows = results(grid)
    assert [row["cell"] for row in rows] == sorted(
        NAMES, key=lambda name: (NAMES.index(name.rsplit("-seed")[0] + "-seed0"), name)
    )
    states = {row["cell"]: row["state"] for row in rows}
    assert (states[NAMES[-1]], states[NAMES[3]], states[NAMES[5]]) == (
        *("diverged", "unfinished"),
        "missing",
    )
    last = rows[-1]
    assert (last["diverged_at_step"], last["checkpoint_of_first_half"]) == ("7", "5")
    accuracy = "eval_rewards/accuracies"
    assert 0.3 < float(last[accuracy]) < 0.9
    assert float(last[f"last_{accuracy}"]) == float(last[accuracy])
    assert rows[NAMES.index(NAMES[5])][accuracy] == ""
    assert next(reversed(last)) == "pairs_per_second"


def test_settings_are_said_to_be_shared_only_where_they_are(tmp_path: Path) -> None:
    """DPO learns faster than TD-DPO, and one of its cells has a schedule of its own."""
    rates = {"td_dpo": 1e-3, "dpo": 2e-3}
    cells = [
        resolve({"loss": {"name": loss}, "seed": seed, "train": {"learning_rate": rates[loss]}})
        for loss in rates
        for seed in (0, 1)
    ]
    last = resolve(
        cells[-1].model_dump() | {"train": {"learning_rate": 2e-3, "schedule": "linear"}}
    )
    folder = write_grid(tmp_path / "g", [*cells[:-1], last], lambda _: 0.7, pairs=20)
    experiment = read_experiment(folder)
    shared = shared_settings(experiment)
    assert "learning_rate" not in shared["train"]
    assert "schedule" not in shared["train"]
    assert shared["train"]["epochs"] == 3
    assert differing_settings(experiment) == {
        "train.learning_rate": {"td_dpo": [1e-3], "dpo": [2e-3]},
        "train.schedule": {"td_dpo": ["cosine"], "dpo": ["cosine", "linear"]},
    }
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "| train.learning_rate | 0.001 | 0.002 |" in text
    assert "| train.schedule | cosine | cosine; linear |" in text
    assert [row["learning_rate"] for row in results(folder)] == ["0.001"] * 2 + ["0.002"] * 2
    card = json.loads((folder / "experiment.json").read_text())
    assert card["results"]["learning_rates"] == {"td_dpo": [1e-3], "dpo": [2e-3]}


def test_the_card_has_exactly_the_named_fields(grid: Path) -> None:
    card = json.loads((grid / "experiment.json").read_text())
    assert list(card) == [
        "experiment_summary",
        "evaluation_metrics",
        "models_to_use",
        "datasets_to_use",
        "proposed_method",
        "comparative_methods",
        "hyperparameters_to_search",
        "results",
    ]
    assert card["hyperparameters_to_search"] == [
        {"name": "loss", "range": ["td_dpo", "dpo", "discopop"]},
        {"name": "beta", "range": [0.01, 2.5]},
        {"name": "tau", "range": [0.5, 2.0]},
        {"name": "seed", "range": [0, 1]},
    ]
    assert card["proposed_method"].startswith("td_dpo: Temperature-Decoupled DPO")
    assert [method.split(":")[0] for method in card["comparative_methods"]] == ["dpo", "discopop"]
    # There is no beta of 0.05 here, which the other claims are about.
    assert [claim["number"] for claim in card["results"]["claims"]] == [4]
    setting = card["results"]["scores"]["eval_rewards/accuracies"]["settings"][0]
    assert (setting["loss"], setting["beta"], setting["tau"], setting["seeds"]) == (
        *("td_dpo", 0.01),
        *(0.5, 2),
    )
    low, high = setting["interval"]
    assert low <= setting["mean"] <= high


def test_the_same_runs_give_the_same_files(grid: Path) -> None:
    before = {name: (grid / name).read_bytes() for name in FILES}
    assert main([str(grid)]) == 0
    assert {name: (grid / name).read_bytes() for name in FILES} == before


# ---- Other directories ---------------------------------------------------------------------------


def test_a_single_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grid(tmp_path / "g", CELLS[:1], pairs=200)
    run = tmp_path / "g" / NAMES[0]
    assert main([str(run)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "Did it learn?"
    assert told[1].startswith("Yes: its reward accuracy is 0.")
    assert told[2] == "The model before training has 0.500."
    html = (run / "report.html").read_text()
    assert f'data-copy="{run}"' in html
    assert "Curves" in html
    assert "Score against KL" not in html


def test_a_grid_without_td_dpo_does_not_mention_tau(tmp_path: Path) -> None:
    cells = experiment_cells(loss=["dpo", "simpo"], beta=[0.5, 2.0], seed=[0, 1])
    write_grid(tmp_path / "g", cells, pairs=20)
    assert main([str(tmp_path / "g")]) == 0
    text = (tmp_path / "g" / "report.md").read_text()
    assert text.startswith("# Which loss and beta order pairs best?")
    for word in ("TD-DPO", "claims"):
        assert word not in text
    # The settings, as every config has them, are the only place that names it.
    assert "tau" not in text.partition("## How this was made")[0]


def test_scores_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The harness's results in every run's folder, and in the grid's for the base."""
    cells = experiment_cells(loss=["dpo"], beta=[0.5, 2.0], seed=[0, 1])
    folder = write_grid(tmp_path / "g", cells, pairs=20)
    for place, value in (
        (folder, 0.25),
        *((folder / cell_name(c), c.loss.beta / 4) for c in cells),
    ):
        found = {"gsm8k": {"alias": "gsm8k", "acc,none": value, "acc_stderr,none": 0.1}}
        (place / "results.json").write_text(json.dumps({"results": found}))
    assert main([str(folder), "--score", "results.json:acc"]) == 0
    told = capsys.readouterr().out
    assert "Which beta has the highest gsm8k acc?\nDPO, beta 2 " in told
    assert "The model before training has 0.250." in told
    assert results(folder)[-1]["gsm8k acc"] == "0.5"
    assert main([str(folder), "--score", "results.json:wins"]) == 2
    assert "results.json holds no number 'wins'" in capsys.readouterr().err
    assert main([str(folder), "--score", "nothing.json:acc"]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_runs_without_a_validation_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grid(tmp_path / "g", CELLS[:3], pairs=20)
    for name in NAMES[:3]:
        run = tmp_path / "g" / name
        shutil.rmtree(run / "evaluations")
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        training = [line for line in lines if "eval_loss" not in line]
        (run / "metrics.jsonl").write_text("".join(training))
    assert main([str(tmp_path / "g")]) == 0
    assert "no finished run has a score on held-out data" in capsys.readouterr().out
    html = (tmp_path / "g" / "report.html").read_text()
    assert "grad_norm" in html
    assert "Score against KL" not in html


def test_a_grid_that_has_not_begun(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", CELLS[:2], pairs=20, missing=NAMES[:2])
    assert main([str(tmp_path / "g")]) == 0
    rows = results(tmp_path / "g")
    assert [row["state"] for row in rows] == ["missing", "missing"]


def test_a_file_in_the_pictures_place_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "report_figures"
    place.touch()
    assert main([str(tmp_path)]) == 2
    told = f"error: output: {place}: {place} is not a writable directory\n"
    assert capsys.readouterr().err == told


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("is not a grid or run directory" in line for line in lines)


# ---- In a browser --------------------------------------------------------------------------------

PROBE = """
<script>
addEventListener("load", () => {
  const table = [...document.querySelectorAll("table.sortable")][0];
  const heads = [...table.tHead.rows[0].cells];
  const column = (name) => {
    const place = heads.findIndex((head) => head.textContent.startsWith(name));
    return { button: heads[place].querySelector("button"), values: () =>
      [...table.tBodies[0].rows].map((row) =>
        row.cells[place].textContent.replace("copy path", "").trim()) };
  };
  const accuracy = column("reward accuracy"), cell = column("run");
  const found = {};
  accuracy.button.click(); found.ascending = accuracy.values();
  accuracy.button.click(); found.descending = accuracy.values();
  cell.button.click(); found.cells = cell.values();
  found.sorted = heads.map((head) => head.getAttribute("aria-sort")).filter(Boolean);
  const pick = document.getElementById("metric"), lines = () =>
    document.querySelectorAll("#curves polyline").length;
  found.metrics = [...pick.options].map((option) => option.value);
  found.lines = [lines()];
  found.answers = [...document.querySelectorAll("#answers > *, #answers p")].map(
    (one) => one.textContent);
  for (const id of ["all", "none"]) {
    document.getElementById(id).click();
    found.lines.push(lines());
  }
  document.getElementById("all").click();
  pick.value = "grad_norm"; pick.dispatchEvent(new Event("change"));
  found.lines.push(lines());
  found.background = getComputedStyle(document.body).backgroundColor;
  const dot = document.querySelector("figure svg g circle");
  dot.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, clientX: 5, clientY: 5 }));
  found.tip = document.getElementById("tip").textContent;
  const names = [...document.querySelectorAll("svg .name")].map((name) => {
    const edge = name.ownerSVGElement.getBoundingClientRect().right;
    return name.getBoundingClientRect().right <= edge + 1;
  });
  found.names = names.every(Boolean);
  found.loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  found.window = innerWidth;
  found.width = document.documentElement.scrollWidth;
  document.documentElement.textContent = "FOUND" + JSON.stringify(found) + "END";
});
</script>
"""


@pytest.mark.skipif(
    CHROMIUM is None and "TDDPO_BROWSER" not in os.environ,
    reason="no chromium, chromium-browser or google-chrome here",
)
@pytest.mark.parametrize(("width", "scheme"), [(390, 0), (820, 1), (1280, 0)])
def test_in_a_browser(grid: Path, tmp_path: Path, width: int, scheme: int) -> None:
    """It renders, tables sort, curves are picked, values show, nothing comes from outside.

    Scheme 0 is dark, and 1 is light.

    Every host name leads nowhere, so that an attempt to load something would be an error.
    """
    assert CHROMIUM is not None, "TDDPO_BROWSER is set, and there is no browser"
    page = tmp_path / "page.html"
    page.write_text((grid / "report.html").read_text().replace("</body>", f"{PROBE}</body>"))
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *("--enable-logging=stderr", "--virtual-time-budget=5000"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"),
        f"--blink-settings=preferredColorScheme={scheme}",
        *("--host-resolver-rules=MAP * ~NOTFOUND", page.as_uri()),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in run.stderr.splitlines() if "CONSOLE" in line] == []
    matched = re.search("FOUND(.*)END", run.stdout, re.DOTALL)
    assert matched, run.stderr
    found = json.loads(matched[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert all(one.startswith("data:") for one in found["loaded"])
    assert found["metrics"][0] == "eval_rewards/accuracies"
    assert found["answers"] == ["Why </script>?", "At <0>.At <20>.", "At <0>.", "At <20>."]
    # Six runs of the best three settings; 16 without the missing one; none; all again.
    assert 4 <= found["lines"][0] <= 6
    assert found["lines"][1:] == [15, 0, 15]
    assert found["background"] == ("rgb(22, 24, 27)", "rgb(255, 255, 255)")[scheme]
    assert re.fullmatch(r".+: 0\.\d+, 95 % \[.+\], seeds .+", found["tip"])
    assert found["names"]
    assert found["width"] <= found["window"]
    for order, sign in (("ascending", 1), ("descending", -1)):
        known = [float(value) for value in found[order] if value != "–"]
        assert (np.diff(known) * sign >= 0).all()
        assert found[order][-2:] == ["–", "–"]
        assert len(known) == len(CELLS) - 2
    assert found["cells"] == sorted(NAMES)
    assert found["sorted"] == ["ascending"]
