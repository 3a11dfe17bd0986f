"""What the control plane signs, the sidecar believes; and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control.forcetokens import UNIT_BYTES_MAX, mint
from sidecar.tokens import TokenVerifier
from turnout.contract import FORCE_SECONDS_MAX, TENANT_KEY_BYTES

keys = st.binary(min_size=TENANT_KEY_BYTES, max_size=TENANT_KEY_BYTES)
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
units = st.binary(max_size=UNIT_BYTES_MAX)
lives = st.integers(1, FORCE_SECONDS_MAX)
NOW_S = 1_760_000_000


@given(keys, labels, labels, labels, units, lives)
def test_token_is_believed_until_it_expires_when_control_made_it(
    key: bytes, tenant: str, experiment: str, variant: str, unit: bytes, life_s: int
) -> None:
    token = mint(
        key,
        tenant=tenant,
        experiment=experiment,
        variant=variant,
        unit=unit,
        issued_s=NOW_S,
        expires_s=NOW_S + life_s,
    ).encode()
    verifier = TokenVerifier(key, tenant)
    found = verifier.verify(token, NOW_S)
    assert found is not None
    assert (found.experiment, found.variant, found.unit) == (experiment, variant, unit)
    assert verifier.verify(token, NOW_S + life_s - 1) == found
    assert verifier.verify(token, NOW_S + life_s) is None
    assert TokenVerifier(key, f"{tenant}x").verify(token, NOW_S) is None
    other = bytes([key[0] ^ 1]) + key[1:]
    assert TokenVerifier(other, tenant).verify(token, NOW_S) is None


@given(st.data())
def test_token_is_not_believed_when_a_byte_of_it_is_another(data: st.DataObject) -> None:
    key = bytes(range(TENANT_KEY_BYTES))
    token = mint(
        key,
        tenant="risk",
        experiment="fraud-v2",
        variant="v2",
        unit=data.draw(units),
        issued_s=NOW_S,
        expires_s=NOW_S + 60,
    ).encode()
    at = data.draw(st.integers(0, len(token) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != token[at]))
    forged = token[:at] + bytes([byte]) + token[at + 1 :]
    assert TokenVerifier(key, "risk").verify(forged, NOW_S) is None
