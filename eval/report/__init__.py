"""What came out of an experiment: a verdict, with its uncertainty, in words, tables and pictures.

`cells` reads run directories, `pairs` turns stored log-probs into metrics and chooses checkpoints,
`scores` holds what cells are scored by, `arms` what is compared, `intervals` and `sensitivity` do
the statistics, `claims` tests the expected results, `heat_maps`, `beta_plots`, `frontier` and
`curves` draw, `tables` writes numbers down, `page` and `card` put everything into files.
"""
