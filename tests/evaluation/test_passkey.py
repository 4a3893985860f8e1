"""Pass keys: texts that say what they should, and models of which the answer is known."""

import numpy as np
import pytest

from lsp.core.errors import UserError
from lsp.evaluation.passkey import (
    NumberKeys,
    Plan,
    Template,
    TokenKeys,
    ask,
    keys_for,
)
from tests.evaluation.known import Attentive, Bigram


def encode(text):
    return list(text.encode())


KEYS = keys_for(encode, None, range(256))
ROOM = Template.of(encode).shortest(5)


def asked(model, lengths, depths=(0.0, 0.5, 1.0), samples=2, **options):
    plan = Plan(lengths, depths, samples, 3, seed=1)
    done = []
    found = list(
        ask(
            model,
            encode,
            KEYS,
            plan,
            segment=10**6,
            tokens_at_once=1500,
            advance=done.append,
            **options,
        )
    )
    assert sum(done) == plan.work
    return found


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("length", [ROOM, ROOM + 1, 700])
def test_a_text_says_the_key_once_and_asks_for_it(length, depth):
    template = Template.of(encode)
    text = bytes(template.text(encode("12345"), length, depth, encode("67890"))).decode()
    assert len(text) == length
    assert text.count("The pass key is 12345. Remember it well.") == 1
    assert text.endswith("What was the pass key? The pass key is 67890")
    place = text.index("\nThe pass key") - len(template.task)
    assert place == round(depth * (length - ROOM))


def test_a_model_that_looks_back_names_every_key():
    for row in asked(Attentive(256, order=8), [ROOM, 400]):
        assert (row["accuracy"], row["likeliest"]) == (1, 1)
        assert row["margin"] > 5


def test_a_model_that_does_not_look_far_names_what_is_near():
    found = asked(Attentive(256, order=8, reach=200), [600], depths=(0.0, 1.0))
    assert [row["accuracy"] for row in found] == [0, 1]
    assert found[0]["depth"] == 0


def test_a_model_that_knows_nothing_is_right_by_chance():
    found = asked(Bigram(256), [ROOM], depths=(0.5,), samples=40)
    assert found[0]["accuracy"] == 0
    assert found[0]["likeliest"] < 0.6


def test_keys_are_a_function_of_the_seed_alone():
    model = Attentive(256, order=8)
    assert asked(model, [ROOM]) == asked(model, [ROOM])


def test_keys_are_different_and_equally_long():
    drawn = KEYS.draw(np.random.default_rng(0), 9)
    assert KEYS.tokens == 5
    assert len({tuple(key) for key in drawn}) == 9
    assert all(bytes(key).decode().isdecimal() for key in drawn)


def pairs(text):
    """Digits in pairs from the left where a pair is even."""
    tokens, rest = [], text
    while rest:
        size = 2 if len(rest) > 1 and rest[:2].isdecimal() and int(rest[:2]) % 2 == 0 else 1
        tokens.append(int(rest[:size]) + 100 if rest[:size].isdecimal() else 1)
        rest = rest[size:]
    return tokens


def test_tokens_of_several_digits():
    keys = keys_for(pairs, 0, range(300))
    assert isinstance(keys, NumberKeys)
    assert {len(key) for key in keys.draw(np.random.default_rng(0), 20)} == {keys.tokens}


def test_a_vocabulary_without_numbers_has_keys_of_single_tokens():
    keys = keys_for(lambda text: [0] * len(text.split()), 0, [7, 8, 9])
    assert keys == TokenKeys([7, 8, 9])
    assert sorted(keys.draw(np.random.default_rng(0), 3)) == [[7], [8], [9]]


def test_no_room_for_the_question():
    with pytest.raises(UserError, match=rf"passkey_lengths=\[{ROOM - 1}\].* takes {ROOM} tokens"):
        asked(Bigram(256), [ROOM - 1])
