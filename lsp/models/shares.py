"""Which numbers of processes can share the positions of a row; needs no torch."""

from __future__ import annotations

from collections.abc import Callable

from lsp.core.errors import require

SHOWN = 4


def check_degree(problem_with: Callable[[int], str | None], degree: int) -> None:
    """Refuses a `parallelism.sequence`, naming the nearest ones that would work.

    Args:
        problem_with: Why a number of processes cannot share a row; None where it can.
        degree: The number asked for.

    Raises:
        UserError: There is a problem with it.
    """
    problem = problem_with(degree) if degree > 1 else None
    possible = [n for n in range(2, 65) if problem_with(n) is None]
    nearest = sorted(sorted(possible, key=lambda n: abs(n - degree))[:SHOWN])
    require(
        problem is None,
        f"parallelism.sequence={degree}: {problem}; use "
        f"{' or '.join(map(str, [1, *nearest]))} with this model and length",
    )
