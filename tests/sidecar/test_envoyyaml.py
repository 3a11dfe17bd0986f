"""Both dumpers write the same: files must not change with how PyYAML was built."""

from __future__ import annotations

import pytest
import yaml

from sidecar import envoyfiles
from sidecar.envoyyaml import Dumper, FastDumper, dump
from tests.sidecar import samples

ODD = [
    "n", "on", "true", "null", "1.0", "", " ", "a: b", "#x", "é", "\U0001f600", "\x07", "\u2028",
    'say "so"', "back\\slash", "tab\there", "two\nlines", "x" * 300, "many words " * 30, "~", "0x1",
]  # fmt: skip


def _slow(text: str) -> str:
    document = yaml.safe_load(text)
    again: str = yaml.dump(
        document, Dumper=Dumper, sort_keys=False, width=1_000_000, allow_unicode=False
    )
    return again


def test_dumpers_write_the_same_bytes_when_documents_are_ours() -> None:
    for text in envoyfiles.documents(samples.snapshot(), enabled={("fraud-v2", 1)}):
        assert _slow(text) == text


@pytest.mark.parametrize("text", ODD)
def test_dumpers_write_the_same_bytes_when_strings_are_odd(text: str) -> None:
    document = {"key": text, "list": [text, {"deep": text}], "numbers": [1, 0.5, True, None, {}]}
    written = dump(document)
    assert yaml.safe_load(written) == document
    assert _slow(written) == written


def test_dumper_is_libyaml_when_it_is_there() -> None:
    assert issubclass(FastDumper, getattr(yaml, "CSafeDumper", yaml.SafeDumper))
