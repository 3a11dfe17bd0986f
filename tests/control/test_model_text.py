"""Texts that are refused before any field is looked at (RELIABILITY 3, malicious config)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.model import InvalidDocument, Violation, check_documents, load_yaml, read_yaml
from tests.control.resources import EXPERIMENT, TARGET, document, replaced, violations_of
from turnout.contract import RESOURCE_BYTES_MAX

BOTH = f"{TARGET}---{EXPERIMENT}"
# A bomb of nine levels: 430 bytes that PyYAML's own loader expands to 3 GB of references.
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_resources_are_accepted_when_nothing_is_wrong() -> None:
    assert violations_of(BOTH, whole=True) == []
    kinds = [(item.kind, item.tenant, item.name) for item in load_yaml(BOTH.encode())]
    assert kinds == [("Target", "risk", "fraud"), ("Experiment", "risk", "fraud-v2")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(b"", ("(file)", "empty", "must hold at least one resource", 1), id="empty"),
        pytest.param(
            b"a: [1",
            ("(file)", "column 1", "not YAML: did not find expected ',' or ']'", 2),
            id="syntax",
        ),
        pytest.param(
            b"a: 1\nb: \xff\xfe",
            ("(file)", "byte 0xff at offset 8", "must be UTF-8", 2),
            id="utf-8",
        ),
        pytest.param(
            b"a: \x07",
            ("(file)", "U+0007", "not YAML: this character is not allowed", 0),
            id="control character",
        ),
        pytest.param(b"a: 1\nb: 2\na: 3\n", ("a", "a", "the key is there twice", 3), id="twice"),
        pytest.param(
            b"a: {b: {c: 1,\n c: 2}}",
            ("a.b.c", "c", "the key is there twice", 2),
            id="nested twice",
        ),
        pytest.param(
            b"- !!python/object:os.system {}",
            ("[0]", "tag:yaml.org,2002:python/object:os.system", "tags are not accepted", 1),
            id="tag",
        ),
        pytest.param(b"a: &x 1", ("a", "&x", "anchors are not accepted", 1), id="anchor"),
        pytest.param(
            b"? [a]\n: b", ("(document)", "(collection)", "a key must be a string", 1), id="key"
        ),
        pytest.param(
            b"x" * (RESOURCE_BYTES_MAX + 1),
            ("(file)", f"more than {RESOURCE_BYTES_MAX} bytes", "too large", 0),
            id="large",
        ),
    ],
)
def test_text_is_refused_with_place_value_and_rule_when_it_is_bad(
    text: bytes, expected: tuple[str, str, str, int]
) -> None:
    assert violations_of(text) == [Violation(*expected)]


@pytest.mark.parametrize("opening", ["[", "- ", "{a: ", "a:\n" + " "], ids=repr)
def test_depth_bomb_is_refused_without_recursion_when_it_is_5000_deep(opening: str) -> None:
    text = opening * 5000
    if "\n" in opening:
        text = "".join(f"{' ' * depth}a:\n" for depth in range(600))
    found = violations_of(text)
    assert [violation.rule for violation in found] == ["at most 20 levels deep"]


def test_alias_bomb_is_refused_unexpanded_when_it_is_read() -> None:
    start = time.perf_counter()
    found = violations_of(BOMB)
    assert time.perf_counter() - start < 1
    assert {violation.rule for violation in found} == {
        "anchors are not accepted",
        "aliases are not accepted; write the value out",
    }
    assert len(found) == 9 + 8 * 9  # every anchor and every alias


def test_five_mebibytes_are_refused_at_once_when_they_are_valid_yaml() -> None:
    text = TARGET + "# padding\n" * (5 * 1024 * 1024 // 10)
    start = time.perf_counter()
    assert [violation.rule for violation in violations_of(text)] == ["too large"]
    assert time.perf_counter() - start < 1


def test_all_faults_of_a_text_are_named_when_there_are_several() -> None:
    found = violations_of("a: &x 1\nb: *x\nb: 2\n")
    assert [(violation.field, violation.line) for violation in found] == [
        ("a", 1),
        ("b", 2),
        ("b", 3),
    ]


@pytest.mark.parametrize(
    "word", ["no", "on", "yes", "off", "y", "n", "012x", "12:30:45", "1e", "="]
)
def test_words_of_yaml_1_1_are_strings_when_they_are_plain(word: str) -> None:
    text = replaced(EXPERIMENT, "team: payments", f"team: {word}")
    assert document(text).labels == {"team": word}


@pytest.mark.parametrize("word", ["1", "-7", "1.5", "1e3", ".inf", ".nan", "true", "FALSE", "012"])
def test_scalars_that_are_no_strings_are_refused_when_a_string_is_wanted(word: str) -> None:
    found = violations_of(replaced(EXPERIMENT, "team: payments", f"team: {word}"))
    rule = f'must be a string, quoted: "{word}"'
    assert found == [Violation("metadata.labels.team", word, rule, 3)]
    quoted = replaced(EXPERIMENT, "team: payments", f'team: "{word}"')
    assert document(quoted).labels == {"team": word}


@pytest.mark.parametrize("prefix", ["\ufeff", "%YAML 1.2\n---\n", "---\n", "# note\n", "\n\n"])
def test_text_is_read_when_it_begins_unusually(prefix: str) -> None:
    assert document(prefix + TARGET).name == "fraud"


def test_text_is_read_when_lines_end_like_on_windows() -> None:
    assert document(TARGET.replace("\n", "\r\n")).name == "fraud"


def test_yaml_1_1_booleans_are_refused_when_a_boolean_is_wanted() -> None:
    found = violations_of(
        replaced(EXPERIMENT, "{header: x-user-id, noUnit: skip}", "{random: yes}")
    )
    assert Violation("spec.unit.random", "yes", "must be true or false", 6) in found


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_reading_ends_in_documents_or_violations_when_bytes_are_arbitrary(data: bytes) -> None:
    assert isinstance(violations_of(data), list)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_reading_ends_in_documents_or_violations_when_a_good_file_is_damaged(
    data: st.DataObject,
) -> None:
    text = BOTH
    alphabet = st.sampled_from([*"{}[]:,-#&*!|>'\"%@` \n\t~0a.", "\x00", "\x85", "é"])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 8)))
        text = text[:start] + data.draw(st.text(alphabet, max_size=4)) + text[end:]
    for violation in violations_of(text):
        assert violation.field
        assert violation.value
        assert violation.rule
        assert violation.value.isprintable()
        assert len(violation.value) <= 80


def test_load_yaml_raises_every_fault_when_two_documents_are_bad() -> None:
    text = replaced(TARGET, "timeout: 60s", "timeout: soon")
    text += "---" + replaced(EXPERIMENT, "noUnit: skip", "noUnit: guess")
    with pytest.raises(InvalidDocument) as raised:
        load_yaml(text.encode())
    assert [violation.field for violation in raised.value.violations] == [
        "spec.timeout",
        "spec.unit.noUnit",
    ]


def test_values_are_checked_too_when_spelling_is_bad_elsewhere() -> None:
    text = replaced(TARGET, "timeout: 60s", "timeout: soon")
    text = replaced(text, '"fraud-v1:8080"', '"fraud-v1"')
    documents, spelling = read_yaml(text.encode())
    assert [violation.field for violation in spelling] == ["spec.timeout"]
    (values,) = check_documents(documents, tenant="default")
    assert [violation.field for violation in values] == ["spec.baseline.upstream.address"]
