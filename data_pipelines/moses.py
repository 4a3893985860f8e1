"""Moses-like word splitting for Transformer-XL, as normalizers of the `tokenizers` library.

The published tokenizer splits with sacremoses: Moses' punctuation normalizer and tokenizer for
English, dashes split as `@-@`, then separators inside numbers as `@,@` and `@.@`. Here the same
rules are substitutions that a saved `tokenizer.json` carries, so that `AutoTokenizer` splits alike
without sacremoses. They give the tokens of sacremoses 0.2.0 for text in scripts that it knows,
apart from these:

- characters added to Unicode after Perl's tables (2014), which sacremoses splits off one by one;
- chains of three or more apostrophes with one character between them;
- two or more commas at the beginning of a line, or between a letter and a digit;
- a text that spells a special token: here it is text, there the token.

Decoding puts words together as the Moses detokenizer does: punctuation to the left, brackets and
currency to the right, quotation marks by turns, and numbers whole again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Noncharacters, which no text holds; what has them loses them first.
_MARK, _CLOSING = "\ufdd0", "\ufdd1"

# What Moses calls letters: in the basic plane, without ideographs and Korean syllables (each of
# which is a token), with the marks that change an Indic consonant.
_SCRIPTS = r"[\u0000-\u33ff\ua000-\uabff\ud7b0-\uf8ff\ufb00-\uffff]"
_INDIC = "\u093c\u094d\u09bc\u09cd\u0a3c\u0a4d\u0abc\u0acd\u0b3c\u0b4d\u0bcd\u0c4d\u0cbc\u0ccd"
_ALPHA = rf"[\p{{Alphabetic}}{_INDIC}\u0d4d\u0dca&&{_SCRIPTS}]"
_ALNUM = rf"[\p{{Alphabetic}}\p{{Nd}}{_INDIC}\u0d4d\u0dca&&{_SCRIPTS}]"
_NUMBER = r"\p{N}"
_BREAK = rf"[^{_ALPHA}\n]"
_OTHER = rf"[^{_ALNUM}\s.'`,\-]"

# Every kind of space but a line's end.
_SPACE = r"[\t\x0b\f\r\x1c-\x1f \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"

# A full stop after these stays where it is; after the second ones, where a number follows.
_ABBREVIATIONS = (
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z Adj Adm Adv Asst Bart Bldg Brig Bros Capt "
    "Cmdr Col Comdr Con Corp Cpl DR Dr Drs Ens Gen Gov Hon Hr Hosp Insp Lt MM MR MRS MS Maj Messrs "
    "Mlle Mme Mr Mrs Ms Msgr Op Ord Pfc Ph Prof Pvt Rep Reps Res Rev Rt Sen Sens Sfc Sgt Sr St "
    "Supt Surg v vs rev Rs Nos Nr Jan Feb Mar Apr Jun Jul Aug Sep Oct Nov Dec"
)
_BEFORE_NUMBERS = "No Art pp"

_Rule = tuple[str, str]

_PUNCTUATION: tuple[_Rule, ...] = (
    ("`", "'"),
    ("''", ' " '),
    ("[„“”]", '"'),
    ("–", "-"),
    ("—", " - "),
    ("[´‘‚’]", "'"),
    ("''", '"'),
    ("…", "..."),
    (r"«\u00a0?|»", '"'),
    # A comma or full stop goes before the quotation mark that it follows.
    (r'(?<="[,.]{1,99})(?![,.])', _MARK),
    (rf'"(?=[,.]+{_MARK})', ""),
    (_MARK, '"'),
    (r"(?<=\d)\u00a0(?=\d)", "."),
)

_WORDS: tuple[_Rule, ...] = (
    (rf"{_SPACE}+", " "),
    (r"[\x00-\x09\x0e-\x1b]", ""),
    # Line by line, as the published tokenizer reads: ends without spaces.
    (r"\A +|(?<=\n) +| +(?=\n)| +\z", ""),
    (rf"(?={_OTHER})|(?<={_OTHER})", " "),
    (rf"(?<={_ALNUM})-(?={_ALNUM})", " @-@ "),
    (r"(?<!\.)(?=\.\.)|(?<=\.\.)(?!\.)", " "),
    (rf"[^{_NUMBER}\n]\K,", " , "),
    (rf",(?=[^{_NUMBER}\n])", " , "),
    (rf"(?<={_NUMBER}),(?=\n|\z)", " , "),
    # Apostrophes: on their own between what is no letter, before the ending of a word otherwise.
    (rf"{_BREAK}\K(?<!{_BREAK}'{_BREAK})'(?={_BREAK})", " ' "),
    (rf"(?!{_ALPHA})[^{_NUMBER}\n]\K'(?={_ALPHA})", " ' "),
    (rf"{_ALPHA}\K'(?!{_ALPHA})(?=[^\n])", " ' "),
    (rf"(?<={_ALPHA})(?<!{_ALPHA}'{_ALPHA})'(?={_ALPHA})", " '"),
    (rf"(?<={_NUMBER})'(?=s)", " '"),
)


def _full_stop() -> _Rule:
    """Splits off the full stop of a word that is no abbreviation and goes before a new sentence."""
    listed = "|".join(_ABBREVIATIONS.split())
    numbered = "|".join(_BEFORE_NUMBERS.split())
    kept = (
        rf"(?=\S*\.\S+\.(?!\S))(?=\S*{_ALPHA})",  # U.S.
        rf"(?:{listed})\.(?!\S)",
        rf"(?:{numbered})\.[^\S\n]+[0-9]",
    )
    before_small = r"(?![^\S\n]+\p{Lowercase})"
    return rf"(?<!\S)(?!{'|'.join(kept)})\S*[^\s.]\K\.(?!\S){before_small}", " ."


_ENDS: tuple[_Rule, ...] = (
    _full_stop(),
    (r"\.'(?= ?(?:\n|\z))", " . ' "),
    (r"(?<=\d),(?=\d)", " @,@ "),
    (r"(?<=\d)\.(?=\d)", " @.@ "),
)

_APOSTROPHE = r"(?<!\S)'(?!\S)"

# Closing quotation marks are marked first; what is left of them opens.
_DETOKENIZED: tuple[_Rule, ...] = (
    (" @-@ ", "-"),
    (r'(?<!\S)"(?!\S)[^"]*\K(?<!\S)"(?!\S)', _MARK),
    (rf"(?<!s ){_APOSTROPHE}(?:(?!{_APOSTROPHE})[\s\S])*\K{_APOSTROPHE}", _CLOSING),
    (r"(?<=\S) (?='\p{Alphabetic})", ""),
    (r"(?<=s) '(?!\S)", "'"),
    (rf"(?<=\S) (?=(?:[,.?!:;\\%}}\])]+|{_MARK}|{_CLOSING})(?!\S))", ""),
    (r"""(?<!\S)(?:"|'|[\p{Sc}(\[{¿¡]+)\K """, ""),
    (_MARK, '"'),
    (_CLOSING, "'"),
    (" @,@ ", ","),
    (r" @\.@ ", "."),
)


def moses_splitting() -> list[Any]:
    """Normalizers that leave words with spaces between them; a line's end stays as it is."""
    return _replacements([(f"[{_MARK}{_CLOSING}]", ""), *_PUNCTUATION, *_WORDS, *_ENDS])


def space_splitting(eos: str) -> list[Any]:
    """Normalizers for text whose words have spaces between them already.

    Args:
        eos: The end-of-line token, which a text is not to contain.
    """
    spelled = f"{eos[0]} {eos[1:-1]} {eos[-1]}"
    return _replacements([(rf"{_SPACE}+", " "), (rf"(?<!\S){eos}(?!\S)", spelled)])


def moses_joining() -> Any:
    """The decoder: words to text, as the Moses detokenizer writes it, and numbers whole again."""
    from tokenizers import Regex, decoders

    joined = [decoders.Replace(Regex(pattern), content) for pattern, content in _DETOKENIZED]
    # Spaces between tokens are all that a decoder of word pieces adds, where none begins so.
    spaced = decoders.WordPiece(prefix=_MARK, cleanup=False)
    return decoders.Sequence([spaced, decoders.Fuse(), *joined])


def _replacements(rules: Iterable[_Rule]) -> list[Any]:
    from tokenizers import Regex, normalizers

    return [normalizers.Replace(Regex(pattern), content) for pattern, content in rules]
