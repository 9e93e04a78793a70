import random

from tokenizers import normalizers

from ppf.llm.sources import byte_tokenizer
from ppf.server.text import TextPieces
from tests.sentencepiece import sentencepiece_form

TEXT = "Grüße, 世界! ab abc abcd 🙂"


def pieces(tokens: list[int], stops: list[str]) -> tuple[list[str], bool]:
    text, found = TextPieces(byte_tokenizer(), stops), []
    for token in tokens:
        found.append(text.add(token))
        if text.stopped:
            return found, True
    return [*found, text.end()], text.stopped


def tokens(text: str) -> list[int]:
    return list(byte_tokenizer()(text)["input_ids"])


def test_pieces_are_whole_characters_and_join_to_the_text() -> None:
    found, stopped = pieces(tokens(TEXT), [])
    assert "".join(found) == TEXT and not stopped
    assert set(found) == {"", *TEXT}


def test_bytes_that_are_no_text_are_not_lost() -> None:
    cut = tokens("a🙂")[:-1]
    assert "".join(pieces(cut, [])[0]) == byte_tokenizer().decode(cut)


def test_a_text_that_goes_on_keeps_its_first_space() -> None:
    tokenizer = sentencepiece_form(normalizers.Prepend("▁"))
    prompt, (the,) = tokenizer("cat").input_ids, tokenizer("the").input_ids
    assert TextPieces(tokenizer, [], prompt).add(the) == " the"
    assert TextPieces(tokenizer, []).add(the) == "the"


def test_random_texts_are_cut_as_the_whole_would_be() -> None:
    generator = random.Random(0)
    for _ in range(200):
        text = "".join(generator.choices("ab", k=12))
        stops = ["".join(generator.choices("ab", k=generator.randint(2, 5))) for _ in range(2)]
        ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
        found, stopped = pieces(tokens(text), stops)
        assert stopped == bool(ends)
        if ends:
            first = [text.index(s) for s in stops if s in text[: min(ends)]]
            assert "".join(found) == text[: min(first)]
        else:
            assert "".join(found) == text
