"""Filter pruning's choices: which channels matter least, how many of each group to keep, and what that saves."""
