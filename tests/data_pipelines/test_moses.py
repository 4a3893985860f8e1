"""Word splitting as the published Transformer-XL has it: by hand, from Moses' rules."""

from __future__ import annotations

import pytest
from tokenizers import normalizers

from data_pipelines.moses import moses_joining, moses_splitting

# What sacremoses 0.2.0 gives through the published tokenizer's three steps.
CASES = {
    "23,000 people are 1.80 m tall": "23 @,@ 000 people are 1 @.@ 80 m tall",
    "$ 5,000 1.73 m": "$ 5 @,@ 000 1 @.@ 73 m",
    "Hello, my dog is cute": "Hello , my dog is cute",
    'He said "fine." U.S. troops, Mr. Smith e.g. went.': (
        'He said " fine . " U.S. troops , Mr. Smith e.g. went .'
    ),
    "No. 5 and No. five. It was at 5 p.m. to-day": (
        "No. 5 and No. five . It was at 5 p.m. to @-@ day"
    ),
    "it's the dogs' 90's, don't rock'n'roll": "it 's the dogs ' 90 's , don 't rock 'n'roll",
    "wait... what?! (yes)": "wait ... what ? ! ( yes )",
    "a,b 1,000, 2,5": "a , b 1 @,@ 000 , 2 @,@ 5",
    "“Où” — l’été…": '" Où " - l \'été ...',
    "漢字 한글 かな 😀": "漢 字 한 글 かな 😀",
    "and/or 50 % a_b": "and / or 50 % a _ b",
    "the end. next small": "the end. next small",
    "<unk> & <eos>": "< unk > & < eos >",
}


@pytest.mark.parametrize("text", CASES)
def test_words(text: str) -> None:
    splitting = normalizers.Sequence(moses_splitting())
    assert splitting.normalize_str(text).split() == CASES[text].split()


def test_lines_are_split_one_by_one() -> None:
    splitting = normalizers.Sequence(moses_splitting())
    lines = ["A man of St.", "' and so.'", "  no, 5,", "", "end."]
    whole = splitting.normalize_str("\n".join(lines))
    assert [line.split() for line in whole.split("\n")] == [
        splitting.normalize_str(line).split() for line in lines
    ]


JOINED = {
    "23 @,@ 000 people are 1 @.@ 80 m tall , New @-@ York .": (
        "23,000 people are 1.80 m tall, New-York."
    ),
    'He said " fine . " and ( " so " ) for $ 5 !': 'He said "fine." and ("so") for $5!',
    "the dogs ' house , ' he said ' , isn 't it 's": "the dogs' house, 'he said', isn't it's",
}


@pytest.mark.parametrize("words", JOINED)
def test_words_become_text(words: str) -> None:
    assert moses_joining().decode(words.split(" ")) == JOINED[words]
