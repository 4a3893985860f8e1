"""The keys and values that a layer still needs when it reads token by token."""

from __future__ import annotations

import torch


class Window:
    """The last positions of (B, N, T, H) keys and values: `size` of them, or all there were."""

    def __init__(self, size: int) -> None:
        self._size, self._stop = size, 0
        self._storage: torch.Tensor | None = None  # keys and values, (2, B, N, room, H)

    def append(self, k_BNTH: torch.Tensor, v_BNTH: torch.Tensor) -> None:
        new = torch.stack((k_BNTH, v_BNTH))[..., -self._size :, :]
        count = new.shape[3]
        if self._storage is None or self._stop + count > self._storage.shape[3]:
            held = None if self._storage is None else self._last(self._size - count)
            kept = 0 if held is None else held.shape[3]
            # Twice the size, so that a step in `size` copies what is held.
            room = min(2 * self._size, max(64, 2 * (kept + count)))
            storage = new.new_empty((*new.shape[:3], room, new.shape[4]))
            if held is not None:
                storage[:, :, :, :kept] = held
            self._storage, self._stop = storage, kept
        self._storage[:, :, :, self._stop : self._stop + count] = new
        self._stop += count

    def _last(self, count: int) -> torch.Tensor:
        assert self._storage is not None
        return self._storage[:, :, :, max(0, self._stop - count) : self._stop]

    @property
    def keys_and_values(self) -> torch.Tensor:
        """(2, B, N, T, H), the newest last."""
        return self._last(self._size)
