"""The commands that are no operation, a module each; `stonemux.cli` has their table.

A module's docstring is the command's description, `add_arguments` declares its flags and `run` does it.
"""
