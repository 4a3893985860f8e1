"""Find the tokens that a generator filled in (ELECTRA, 2003.10555, section 2).

The batch is that of masked tokens, each of which is the mask token in the input. Which token takes
its place, and which were replaced, the model samples.
"""

from lsp.data.objectives.masked import masked as replaced_token

__all__ = ["replaced_token"]
