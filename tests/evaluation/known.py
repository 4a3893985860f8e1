"""Models whose answers are known, for measurements."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from lsp.models.interface import LanguageModel

CERTAIN = 20.0


class Known(LanguageModel):
    """Is certain of the next token where its rule gives one, and has no idea elsewhere.

    Args:
        vocabulary: Number of tokens.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocabulary, mem_len=0, is_decoder=True)
        self.anchor = nn.Parameter(torch.zeros(()))
        self.read: list[tuple[int, ...]] = []  # shapes of what was read

    def next_tokens(self, text_BL: torch.Tensor) -> torch.Tensor:
        """(B, L) what follows each token; -1 where it has no idea."""
        raise NotImplementedError

    def hidden_states(self, input_ids, segment_ids=None, position_ids=None):
        self.read.append(tuple(input_ids.shape))
        next_BL = self.next_tokens(input_ids)
        scores_BLV = torch.nn.functional.one_hot(next_BL.clamp(min=0), self.config.vocab_size)
        return CERTAIN * scores_BLV * (next_BL >= 0)[..., None] + self.anchor

    def lm_head(self, hidden):
        return hidden

    def logits(self, input_ids, segment_ids=None, position_ids=None):
        return self.lm_head(self.hidden_states(input_ids, segment_ids, position_ids))

    def forward(self, input_ids, labels, segment_ids=None, position_ids=None):
        losses_T, _ = self.token_losses(input_ids, labels, segment_ids, position_ids)
        return losses_T.sum(), torch.tensor(len(losses_T))

    def flops_per_token(self, sequence_length):
        return 0.0

    def begin_micro_batch(self, seed, first_row=0):
        pass


class Bigram(Known):
    """The next token is one more than the last: nothing else is needed."""

    def next_tokens(self, text_BL):
        return (text_BL + 1) % self.config.vocab_size


class Periodic(Known):
    """The next token is the one `back` places before it: so many tokens are needed."""

    def __init__(self, vocabulary: int, back: int) -> None:
        super().__init__(vocabulary)
        self.back = back

    def next_tokens(self, text_BL):
        known_BL = torch.nn.functional.pad(text_BL, (self.back - 1, 0), value=-1)
        return known_BL[:, : text_BL.shape[1]]


class Remembering(Periodic):
    """The same with a memory of the last `mem_len` tokens."""

    def __init__(self, vocabulary: int, back: int, mem_len: int) -> None:
        super().__init__(vocabulary, back)
        self.config.mem_len = self.mem_len = mem_len
        self._memory: torch.Tensor | None = None

    def reset_memory_length(self, mem_len):
        self.mem_len = mem_len

    def recall(self, memory):
        self._memory = None if memory is None else memory["tokens"]

    def remembered(self):
        return {"tokens": self._seen[:, max(0, self._seen.shape[1] - self.mem_len) :]}

    def hidden_states(self, input_ids, segment_ids=None, position_ids=None):
        before = self._memory
        if before is not None:
            assert int(position_ids[0, 0]) > 0
            assert len(before) == len(input_ids)
        self._seen = input_ids if before is None else torch.cat((before, input_ids), dim=1)
        hidden = super().hidden_states(self._seen, segment_ids, position_ids)
        return hidden[:, self._seen.shape[1] - input_ids.shape[1] :]


class Attentive(Known):
    """Continues as the text once went on after the same `order` tokens, at any distance."""

    def __init__(self, vocabulary: int, order: int, reach: int = 10**9) -> None:
        super().__init__(vocabulary)
        self.order, self.reach = order, reach

    def next_tokens(self, text_BL):
        rows = text_BL.tolist()
        return torch.tensor([[self._next(row, t) for t in range(len(row))] for row in rows])

    def _next(self, row: list[int], t: int) -> int:
        last = row[t + 1 - self.order : t + 1]
        for start in range(t - 1, max(self.order - 2, t - self.reach), -1):
            if t + 1 >= self.order and row[start + 1 - self.order : start + 1] == last:
                return row[start + 1]
        return -1
