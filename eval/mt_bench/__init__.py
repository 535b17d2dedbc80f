"""MT-Bench: 80 two-turn questions, answered by a model and rated from 1 to 10 by another.

The files have FastChat's formats (lm-sys/FastChat, `fastchat/llm_judge`), with extra keys that
FastChat's own tools ignore. `fetch` downloads the benchmark, `benchmark` reads it, `answers`
generates, `requests` makes the judge's prompts, `judge` asks, `judgments` says which rows count,
`score` and `difference` do the statistics, `report` collects them, `report_text` prints them.

References:
    Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena" (2023), arXiv 2306.05685.
"""
