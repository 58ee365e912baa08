"""study: a declared grid of runs, each checked and compared, in one table and one page."""
