"""Force tokens and hop marks: the vectors are what their maker makes."""

from __future__ import annotations

from tests.vectors.make_tokens import TOKENS, file_text


def test_token_vectors_are_what_their_maker_makes() -> None:
    """Rewritten by `python -m tests.vectors.make_tokens` alone, whose diff is looked at."""
    assert TOKENS.read_text() == file_text()
