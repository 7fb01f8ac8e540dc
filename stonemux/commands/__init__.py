"""The commands that are not operations, one module each; `stonemux.cli` has their table.

A module's docstring is the command's description, `add_arguments` declares its flags, and `run` executes it.
"""
