"""Losses on preference pairs, as pure functions of arrays: one per loss, one value per pair.

Every loss takes `pairs: PairLogps` and, by keyword, the settings it reads, and returns values of
shape [P] in the dtype of `pairs`. The loss of a batch is their mean. Log-probs are in nats, sums
over the response's tokens, end-of-turn included. Settings may be traced, so one compiled step
serves every beta, tau and label smoothing. Names and meanings follow TRL 1.16's `DPOTrainer`; each
docstring says where we differ and why.

What a loss of your own may use, and what stays as it is:

- `pair_logps`: `PairLogps`, what a loss sees of pairs; `log_ratios`, `scaled_margin`, `per_token`.
- `elementary`: `softplus`, `log_sigmoid` and their like, which import JAX only when called.
- `td_dpo`, `dpo`, `two_responses` and `sft`: every loss of ours, as a function of pairs and its
  settings.
- `catalogue`: `LOSSES`, all losses by name.

The other modules serve the training step and may change.
"""
