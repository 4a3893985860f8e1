"""Model code that goes into exports which `transformers` has no class for.

These files run on `transformers` and torch alone, in a folder without this project; nothing here
imports them. They are written to be read and to be right, in linear memory, but not to be fast.
"""
