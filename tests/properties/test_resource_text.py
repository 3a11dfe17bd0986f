"""What is written reads back: durations, names in YAML, whole resources."""

from __future__ import annotations

import string

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from control.model import document_of, durations, load_yaml, to_yaml
from turnout.v1alpha1.experiment_pb2 import Experiment, ExperimentSpec

# What YAML can hold: no surrogates, and no control characters but these.
characters = st.characters(exclude_categories=("Cs", "Cc"), include_characters="\t\n\r\x85\x1b\x00")
texts = st.text(characters, max_size=20)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**18), st.integers(0, 999_999_999))
def test_duration_reads_back_the_same_when_it_is_written(seconds: int, nanos: int) -> None:
    seconds %= 10**9 * 86_400  # nine digits of days
    duration = Duration(seconds=seconds, nanos=nanos)
    assert durations.parse(durations.text(duration)) == duration


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("30s", 30_000),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("50ms", 50),
        ("14d", 1_209_600_000),
        ("1h30m", 5_400_000),
        ("1.5s", 1500),
        ("0s", 0),
        ("2d3h4m5s6ms", 183_845_006),
    ],
)
def test_duration_is_read_when_it_is_written_as_people_do(text: str, milliseconds: int) -> None:
    found = durations.parse(text)
    assert found is not None
    assert durations.milliseconds(found) == milliseconds


@pytest.mark.parametrize(
    "text",
    ["", "5", "s", "-5s", "+5s", "5 s", "5S", "5sec", "5m5h", "5s5s", "1e3s", "5us", ".5s", "5.s",
     "٣s", "5s\n", "1234567890d", "inf", "nan"],
)  # fmt: skip
def test_duration_is_refused_when_it_is_anything_else(text: str) -> None:
    assert durations.parse(text) is None


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from(string.digits + ".dhms -"), max_size=12))
def test_duration_is_read_or_refused_when_text_is_arbitrary(text: str) -> None:
    found = durations.parse(text)
    assert found is None or durations.milliseconds(found) >= 0


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(texts, texts, max_size=5), st.text(characters, max_size=10))
def test_resource_reads_back_the_same_when_its_texts_are_odd(
    labels: dict[str, str], salt: str
) -> None:
    spec = ExperimentSpec(target="x", salt=salt)
    resource = Experiment(name="tenants/a/experiments/b", labels=labels, spec=spec)
    (again,) = load_yaml(to_yaml([document_of(resource)]).encode())
    assert again.labels == labels
    assert again.spec == spec
