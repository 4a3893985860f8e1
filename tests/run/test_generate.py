"""`lsp generate`: prompts in, text out."""

import pytest
import transformers

from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE
from lsp.run.config import GenerateConfig
from lsp.run.generate import encode_prompt, run_generate, text_pieces
from tests.run.small_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config, _, _ = make_run(tmp_path_factory.mktemp("runs"))
    return str(config.run_dir)


def generate(capsys, run, **options):
    assert run_generate(GenerateConfig(run=run, **options)) == DONE
    return capsys.readouterr()


def test_text_begins_with_the_prompt_and_repeats_with_the_seed(run, capsys):
    texts = [generate(capsys, run, prompt="def ", max_new_tokens=20, seed=s).out for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("def ") for text in texts)


SMALL = {
    # Within a chunk LSH attention is over all tokens: see `generate_ids`.
    "reformer": ["attn_layers=[lsh,local]", "lsh_attn_chunk_length=64", "num_attention_heads=2"],
    "longformer": ["attention_window=8", "hidden_size=32", "num_hidden_layers=2"],
    "transformer_xl": ["d_model=32", "d_embed=32", "n_layer=2", "mem_len=64"],
}


@pytest.mark.parametrize("architecture", SMALL)
def test_a_cache_changes_nothing_but_the_time(tmp_path, capsys, architecture):
    overrides = [f"architecture.{one}" for one in SMALL[architecture]]
    words = [f"architecture={architecture}", "tokens_per_step=128", *overrides]
    config, _, _ = make_run(tmp_path, *words, experiment=None)
    options = {"prompt": "def f", "max_new_tokens": 30, "seed": 3}
    texts = [
        generate(capsys, str(config.run_dir), cache=cache, **options).out for cache in (True, False)
    ]
    assert texts[0] == texts[1]


def test_greedy_needs_no_seed(run, capsys):
    texts = {
        generate(capsys, run, prompt="x", max_new_tokens=9, greedy=True, seed=s).out for s in (1, 2)
    }
    assert len(texts) == 1


def test_samples_are_several(run, capsys):
    out = generate(capsys, run, prompt="ab", max_new_tokens=15, num_samples=3, seed=5).out
    head, *samples = out.split("--- ")
    assert head == ""
    assert [sample.partition(" ---\n")[0] for sample in samples] == ["1 of 3", "2 of 3", "3 of 3"]
    assert len({sample.partition(" ---\n")[2] for sample in samples}) == 3


def test_a_prompt_from_a_file(run, capsys, tmp_path):
    (tmp_path / "prompt.txt").write_text("naïve\n")
    file = str(tmp_path / "prompt.txt")
    assert generate(capsys, run, prompt_file=file, max_new_tokens=1).out.startswith("naïve\n")


def test_an_empty_prompt_begins_a_text(run, capsys):
    assert "<eos>" not in generate(capsys, run, max_new_tokens=5).out


def test_a_text_that_does_not_fit_is_announced_and_cut(run, capsys):
    told = generate(capsys, run, prompt="a" * 60, max_new_tokens=100)
    assert "max_new_tokens=100: the model has positions for 4 more" in told.err
    assert told.out.startswith("a" * 60)


def test_a_terminal_shows_the_same_text(run, capsys, monkeypatch):
    import sys

    plain = generate(capsys, run, prompt="é", max_new_tokens=40, seed=2).out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert generate(capsys, run, prompt="é", max_new_tokens=40, seed=2).out == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a" * 64}, "prompt has 64 tokens, and the model reads at most 64"),
        ({"prompt_file": "absent.txt"}, "prompt_file=absent.txt cannot be read: No such file"),
        ({"checkpoint": "7"}, r"checkpoint=7 is not in .*there are 3"),
    ],
    ids=["too long", "no file", "no checkpoint"],
)
def test_what_cannot_be_generated(run, options, message):
    with pytest.raises(UserError, match=message):
        run_generate(GenerateConfig(run=run, **options))


def test_a_prompt_file_of_bytes(run, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read: it is not UTF-8 text"):
        run_generate(GenerateConfig(run=run, prompt_file=str(tmp_path / "bytes")))


def test_a_run_without_a_tokenizer(tmp_path):
    import shutil

    config, _, _ = make_run(tmp_path)
    shutil.rmtree(config.run_dir / "tokenizer")
    with pytest.raises(UserError, match="has no tokenizer: put the files of one into"):
        run_generate(GenerateConfig(run=str(config.run_dir), prompt="a"))


def test_a_masked_model(tmp_path):
    config, _, _ = make_run(tmp_path, "objective=masked")
    with pytest.raises(UserError, match="fill in masked tokens, not to continue"):
        run_generate(GenerateConfig(run=str(config.run_dir), prompt="a"))


def word_tokenizer(**special):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "one": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def test_unknown_words_are_told(capsys):
    tokenizer = word_tokenizer(unk_token="<unk>", eos_token="<eos>")
    assert encode_prompt(tokenizer, "one two three") == [2, 0, 0]
    assert "2 of the 3 tokens of the prompt are not in the vocabulary" in capsys.readouterr().err


def test_what_an_encoder_reads_ends_as_in_training():
    tokenizer = word_tokenizer(eos_token="<eos>")
    assert encode_prompt(tokenizer, "one one") == [2, 2]
    assert encode_prompt(tokenizer, "one one", ends=True) == [2, 2, 1]


def test_nothing_to_begin_with():
    assert encode_prompt(word_tokenizer(eos_token="<eos>"), "") == [1]
    with pytest.raises(UserError, match="prompt is empty, and the tokenizer has no token"):
        encode_prompt(word_tokenizer(), "")


def decode_bytes(ids):
    return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    "text", ["abc", "aé日🙂b", "", "🙂🙂"], ids=["ascii", "mixed", "empty", "wide"]
)
def test_pieces_add_up_and_hold_whole_characters(text):
    pieces = list(text_pieces(list(b"p:"), text.encode(), decode_bytes))
    assert pieces == list(text)


def test_a_character_that_is_never_finished_is_still_shown():
    pieces = list(text_pieces(list(b"p"), "é".encode()[:1], decode_bytes))
    assert pieces == ["\ufffd"]


def test_bytes_that_are_no_text_do_not_hold_back_what_follows():
    def tokens():
        yield from b"\xff" * 100
        assert len(shown) > 4
        yield from "日".encode()

    shown = []
    for piece in text_pieces(list(b"p"), tokens(), decode_bytes):
        shown.append(piece)
    assert "".join(shown) == "\ufffd" * 100 + "日"
