"""The report's files: a page that loads nothing, the same as Markdown, the cells, the card."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import yaml

from tddpo_jax.system.atomic import write_text

from ..analysis import Analysis
from ..read.settings import shared_settings
from .card import card
from .results_csv import results_csv
from .run_tables import states_of
from .sections import sections_of
from .tables import Link

FIGURES = "report_figures"


def write_report(analysis: Analysis, command: str) -> list[Path]:
    """Writes the report into the experiment's own directory.

    Args:
        analysis: the content.
        command: the command that makes this report; the page shows it.

    Returns:
        The files that were written, except the pictures.
    """
    folder = analysis.experiment.folder
    sections = [s for s in sections_of(analysis) if s.tables or s.pictures or s.notes]
    figures = folder / FIGURES
    figures.mkdir(exist_ok=True)
    for section in sections:
        for drawn in section.pictures:
            (figures / f"{drawn.name}.svg").write_bytes(drawn.svg)
    content = {
        "title": analysis.experiment.folder.resolve().name,
        "states": states_of(analysis.experiment),
        "headlines": analysis.headlines,
        "sections": sections,
        "settings": yaml.safe_dump(shared_settings(analysis.experiment), sort_keys=False),
        "command": command,
        "figures": FIGURES,
    }
    texts = {
        "report.html": _environment(escape=True).get_template("page.html.j2").render(content),
        "report.md": _environment(escape=False).get_template("page.md.j2").render(content),
        "results.csv": results_csv(analysis),
        "experiment.json": json.dumps(card(analysis), indent=2, allow_nan=False) + "\n",
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
    environment.tests["link"] = lambda entry: isinstance(entry, Link)
    return environment
