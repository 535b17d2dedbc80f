"""What an experiment showed: a verdict with its uncertainty, in words, tables and pictures.

`read` turns run directories into scores, `statistics` compares them and tests the claims,
`analysis` collects everything that a report says, `figures` draws, `pages` writes the files.
"""
