"""Losses on preference pairs, as pure functions of arrays.

What a loss of your own may use, and what stays as it is:

- `pair_logps`: `PairLogps`, what a loss sees of pairs; `log_ratios`, `scaled_margin`, `per_token`.
- `elementary`: `softplus`, `log_sigmoid` and their like, which import JAX only when called.
- `dpo` and `td_dpo`: every loss of ours, as a function of pairs and its settings.
- `catalogue`: `LOSSES`, all losses by name.

The other modules serve the training step and may change.
"""
