"""What the user may say about certificates."""

from __future__ import annotations

from dataclasses import dataclass

from lsp.core.errors import require, unknown_choice

CERTIFICATES = ("packing",)
"""What `lsp verify` can certify; `packing` takes the order in time along."""


@dataclass
class VerifyConfig:
    """Certificates of a model. `lsp train` reads the first key, `lsp verify` the others.

    Attributes:
        at_start: Whether training begins with a short form of the packing certificate, on the model
            that is about to be trained. It changes nothing about what is trained.
        certificate: What is certified (`CERTIFICATES`); typed as the word after `lsp verify`.
        everything: Whether every native architecture is certified, in tiny sizes, instead of the
            model that the other keys describe; what `lsp verify` does where none are given.
        length: Tokens in the rows that are looked at; 0 for a few hundred, or fewer.
        out: JSON file for the result; null is `verified/<certificate>.json`.
    """

    at_start: bool = True
    certificate: str = "packing"
    everything: bool = False
    length: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        if self.certificate not in CERTIFICATES:
            raise unknown_choice("verify.certificate", self.certificate, CERTIFICATES)
        require(self.length >= 0, f"verify.length={self.length} must be 0 (a few hundred) or more")
