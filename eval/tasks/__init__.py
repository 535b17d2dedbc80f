"""Tasks: each module holds the prompts of one task and the rule that scores an answer."""
