"""The report's files: a page that loads nothing, its words as Markdown, the cells, the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jinja2
import yaml

from tddpo_jax.system.atomic import write_text

from ..analysis import Analysis
from ..answer import Answer
from ..figures.chart import STYLE
from ..figures.curves import curves_of
from ..figures.pictures import answer_pictures
from ..read.settings import shared_settings
from .card import card
from .results_csv import results_csv
from .sections import answers_of, chips_of, sections_of

FIGURES = "report_figures"


def write_report(analysis: Analysis, answer: Answer, command: str) -> list[Path]:
    """Writes the report into the experiment's own directory.

    Args:
        analysis: the content.
        answer: its first screen.
        command: the command that makes this report; the page shows it.

    Returns:
        The files that were written, except the pictures.
    """
    folder = analysis.experiment.folder
    pictures, (opened, folded) = answer_pictures(analysis), sections_of(analysis)
    # Pictures of an earlier report would stay beside those of this one.
    shutil.rmtree(folder / FIGURES, ignore_errors=True)
    (folder / FIGURES).mkdir()
    for drawn in [*pictures, *(one for section in opened for one in section.pictures)]:
        write_text(folder / FIGURES / f"{drawn.name}.svg", drawn.file)
    content = {
        "title": folder.resolve().name,
        "answer": answer,
        "chips": chips_of(analysis.experiment),
        "pictures": pictures,
        "open": opened,
        "folded": folded,
        "answers": answers_of(analysis),
        "curves": curves_of(analysis),
        "settings": yaml.safe_dump(shared_settings(analysis.experiment), sort_keys=False),
        "command": command,
        "figures": FIGURES,
        "style": STYLE,
    }
    texts = {
        "report.html": _environment(escape=True).get_template("page.html.j2").render(content),
        "report.md": _environment(escape=False).get_template("page.md.j2").render(content),
        "results.csv": results_csv(analysis),
        "experiment.json": json.dumps(card(analysis, answer), indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _environment(*, escape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment
