"""Programs that measure: answers, speed, and reports on grids."""
