"""Models: one paper, one file. base.py is the contract."""
