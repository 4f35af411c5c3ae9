"""Data files -> blocks of raw rows -> rows, for each kind of file. `blocks` is the entry."""
