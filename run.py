"""Trains one run or every cell of a grid: `python run.py --beta 0.05 --tau 1.0`."""

import sys

from tddpo_jax.__main__ import train_command
from tddpo_jax.commands.exit_status import run_command

if __name__ == "__main__":
    sys.exit(run_command(train_command, sys.argv[1:], resumes=True))
