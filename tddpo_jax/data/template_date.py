"""The day on which every conversation takes place here.

Many chat templates write today's date. That would change the ids of the data, and so their hashes
and the kept reference, every midnight. So training and generation read templates behind `AT_DATE`.
A policy's folder gets the template without it: a program that serves the policy writes its own day,
as the template's authors meant it to.
"""

from __future__ import annotations

import datetime

# Templates of Llama 3 write this date themselves where there is no clock.
DATE = datetime.datetime(2024, 7, 26)


def _replacements() -> str:
    # `%-d` is `%d` without a zero in front. `%%` comes last, or it would make new codes.
    codes = [f"%{sign}{letter}" for letter in "dmyHMSjI" for sign in ("", "-")]
    codes += [f"%{letter}" for letter in "aAbBYpfUwWcxXZz%"]
    return "".join(f".replace('{code}', '{DATE.strftime(code)}')" for code in codes)


# Jinja source to put in front of a template's. Both names are known to transformers. A template
# reads the one that its authors chose. The line breaks are not written.
AT_DATE = (
    "{% set date_string = '" + DATE.strftime("%d %b %Y") + "' %}\n"
    "{% macro strftime_now(format) %}{{ format" + _replacements() + " }}{% endmacro %}\n"
)
