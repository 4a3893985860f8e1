"""What is said where processes differ; `tests/distributed/test_agreement.py` lets them differ."""

from lsp.core.versions import source_digest
from lsp.parallel.agreement import _disagreement, agree, check_shared, ranks_text


def test_ranks_are_named_in_runs():
    assert ranks_text([3]) == "rank 3"
    assert ranks_text([2, 0, 1, 5]) == "ranks 0-2, 5"


def test_what_most_have_comes_first():
    facts = [{"seed": "1", "same": "0"}] * 3 + [{"seed": "2", "same": "0", "more": '"x"'}]
    text = _disagreement(facts, ["a", "a", "b", "b"])
    assert 'more: absent on ranks 0-2 (a, b), "x" on rank 3 (b)' in text
    assert "seed: 1 on ranks 0-2 (a, b), 2 on rank 3 (b)" in text
    assert "same" not in text.replace("the same", "")


def test_one_machine_needs_no_name_and_many_differences_are_cut():
    facts = [{f"key{i}": str(i) for i in range(12)}, {}]
    text = _disagreement(facts, ["a", "a"])
    assert "key0: 0 on rank 0, absent on rank 1" in text
    assert "and 4 more" in text
    assert "(a)" not in text


def test_alone_there_is_nothing_to_agree_on(tmp_path):
    agree({"seed": 1})
    check_shared(tmp_path, "checkpoint.root")
    assert not list(tmp_path.iterdir())


def test_the_digest_of_the_sources_does_not_change_by_itself():
    assert source_digest() == source_digest()
