"""Programs that measure: answers, speed, and reports on grids."""

import os

# Programs in here import transformers before `run_command` runs, which sets the same and says why.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
