"""MT-Bench: 80 two-turn questions, answered by a model and rated from 1 to 10 by another.

The files are FastChat's (lm-sys/FastChat, `fastchat/llm_judge`), with extra keys its own tools
ignore. `data` reads the benchmark, `fetch` downloads it, `answers` generates, `requests` makes what
the judge is asked, `judge` asks, `score` does the statistics, `report` prints them. Reference:
Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", 2023.
"""
