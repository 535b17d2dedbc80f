"""Everything that measures: answers, speed, reports."""
