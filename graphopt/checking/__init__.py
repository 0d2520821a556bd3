"""``graphopt check``: fast static checks and budgets over many files."""
