"""Who gets what, for every kind of unit, layer, segment and override, through a real Envoy.

One Envoy and one sidecar serve all tests of this file: a target for each (see `worlds`).
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from typing import Final, NamedTuple

import pytest
import pytest_asyncio

from tests.integration.harness import Client, Request, Response, Stage, wait_for
from tests.integration.pods import Seen
from tests.integration.worlds import (
    HELD_OUT,
    HOLDOUT,
    JWT_PAYLOAD,
    TENANT,
    World,
    jwt_filter,
    place_of,
    signed_jwt,
)
from tests.vectors.make_tokens import force_token
from turnout.contract import BUCKET_COUNT, MODEL_NAME_HEADERS
from turnout.v1alpha1.common_pb2 import (
    JwtClaim,
    NumberRange,
    Percentage,
    Predicate,
    Session,
    Unit,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Enough that a coin which always falls on one side is seen: 2^-60.
USERS: Final = [f"user-{i}" for i in range(60)]
TRIES: Final = 10
COOKIE: Final = re.compile(r"(sid=([0-9a-f]{32})); Path=/; Max-Age=3600; HttpOnly; SameSite=Lax")
CHOSEN: Final = "chosen"
OPPOSED: Final = "opposed"

Headers = Mapping[str, str | bytes | Sequence[str | bytes]]


class Served(NamedTuple):
    """One answer, and the request as the pod got it."""

    answer: Response
    seen: Seen

    @property
    def variant(self) -> str:
        """Of the response; "" = none."""
        return self.answer.variant

    @property
    def stamp(self) -> list[str]:
        """Entries of the stamp."""
        return [entry for entry in self.seen.headers.get("x-turnout", "").split(",") if entry]


class Scene:
    """The stage with its world."""

    def __init__(self, stage: Stage, world: World) -> None:
        self.stage = stage
        self.world = world
        self.key = b""
        self._asked = 0

    async def ask(self, path: str, *each: Headers) -> list[Served]:
        """Send one request for each set of headers; again when Envoy could not wait for one.

        On a busy machine the sidecar's answer may come too late (50 ms), which Envoy counts.
        """
        for _ in range(TRIES):
            before = await self.stage.unstamped()
            ids = [f"r-{self._asked + i}" for i in range(len(each))]
            self._asked += len(each)
            answers = await self.stage.send(
                Request(path, {"x-request-id": one, **headers})
                for one, headers in zip(ids, each, strict=True)
            )
            if await self.stage.unstamped() == before:
                break
        else:
            raise AssertionError("Envoy never had all answers in time")
        assert {answer.status for answer in answers} == {200}
        seen = {s.headers["x-request-id"]: s for pod in self.stage.pods for s in pod.seen}
        return [Served(a, seen[one]) for a, one in zip(answers, ids, strict=True)]

    async def one(self, path: str, **headers: str) -> Served:
        """Send one request; '_' stands for '-' in names."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await self.ask(path, given))[0]


def _world(stage: Stage) -> World:
    v1, *candidates = stage.pods
    world = World(v1, candidates)
    for name in ("plain", "session", "reserved", "claim", "unverified", "query", "layers",
                 "exclusive", "holdout", "overrides", "segment", "share", "parameter"):  # fmt: skip
        world.target(name)
    world.target("iris", model_name="iris")
    world.target("iris-2", model_name="iris", model_version="2")
    session = Session(cookie="sid")
    session.max_age.FromSeconds(3600)
    claim = JwtClaim(claim="sub", payload_in_metadata=JWT_PAYLOAD)
    unverified = JwtClaim(claim="realm.user", unverified=True, header="x-jwt")
    world.experiment("plain")
    world.experiment("session", unit=Unit(session=session))
    world.experiment("reserved", unit=Unit(session=session), layer_ranges=[(0, BUCKET_COUNT // 2)])
    world.experiment("claim", unit=Unit(jwt_claim=claim))
    world.experiment("unverified", unit=Unit(jwt_claim=unverified))
    world.experiment("query", unit=Unit(query_parameter="user"))
    world.experiment("layers")
    world.parameter("layers", "limit", "limit", layer="limits")
    half = BUCKET_COUNT // 2
    world.experiment("exclusive", "first", layer_ranges=[(0, half)])
    world.experiment("exclusive", "second", shares={"v3": (0, half)},
                     layer_ranges=[(half, half + half // 2)])  # fmt: skip
    world.experiment("holdout", holdout=HELD_OUT)
    world.experiment("overrides", shares={"v2": (0, 0)},
                     overrides={CHOSEN: "v2", OPPOSED: "control"})  # fmt: skip
    world.experiment("segment", segment=_segment())
    tenth = Percentage(salt="another", fraction=0.5, buckets=half)
    world.experiment("share", segment=Predicate(percentage=tenth))
    world.parameter("parameter", "alone", "Threshold", layer="limits")
    for name in ("iris", "iris-2"):
        world.experiment(name)
    world.sorted()
    return world


def _segment() -> Predicate:
    region = Predicate(header="x-region", regex="eu-(west|north)-[0-9]+")
    age = Predicate(header="x-age", range=NumberRange(min=18, max=65))
    app = Predicate(header="x-app", semver=">=1.2.0 <2.0.0")
    tester = Predicate(negated=Predicate(header="x-tester", present=True))
    return Predicate(all=[region, age, app, tester])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    """Everything started, every experiment enrolling."""
    async with Stage() as stage:
        for name in ("v1", "v2", "v3"):
            await stage.pod(name, record=True)
        world = _world(stage)
        filters = stage.directory / "filters.yaml"
        filters.write_text(json.dumps(jwt_filter()))
        await stage.envoy(world.snapshot, args=["--filters", str(filters)])
        await stage.sidecar(snapshot=world.snapshot)
        one = Scene(stage, world)
        await wait_for(lambda: _enrols(stage), "every target's experiments enrol")
        one.key = (stage.directory / "state" / "tenant.key").read_bytes()
        yield one


async def _enrols(stage: Stage) -> bool:
    """Whether requests are stamped: the routes of all targets come at once."""
    answers = await stage.send(
        [Request("/plain", {"x-user-id": "u"}), Request("/v2/models/iris", {"x-user-id": "u"})]
    )
    return all(answer.variant for answer in answers)


# -- Units -----------------------------------------------------------------------------------------


async def test_session_is_issued_once_and_its_cookie_keeps_the_variant(scene: Scene) -> None:
    first = await scene.ask("/session", *({} for _ in USERS))
    cookies = [COOKIE.fullmatch(one.answer.headers.get("set-cookie", "")) for one in first]
    assert all(cookies)
    assert len({cookie[2] for cookie in cookies if cookie}) == len(USERS)
    assert {one.variant for one in first} == {"control", "v2"}
    for one, cookie in zip(first, cookies, strict=True):
        assert cookie is not None
        assert one.variant == scene.world.expected("session", cookie[2])
    again = await scene.ask("/session", *({"cookie": f"a=b; {c[1]}"} for c in cookies if c))
    assert [one.variant for one in again] == [one.variant for one in first]
    assert not any("set-cookie" in one.answer.headers for one in again)


async def test_client_outside_a_reserve_gets_its_cookie_at_once_and_stays_outside(
    scene: Scene,
) -> None:
    """Without it a client would draw a new place with every request, until one is inside."""
    first = await scene.ask("/reserved", *({} for _ in USERS))
    cookies = [COOKIE.fullmatch(one.answer.headers.get("set-cookie", "")) for one in first]
    wanted = []
    for cookie in cookies:
        assert cookie is not None
        inside = place_of("layer-reserved-models", cookie[2]) < BUCKET_COUNT // 2
        wanted.append(scene.world.expected("reserved", cookie[2]) if inside else "")
    assert [one.variant for one in first] == wanted
    assert set(wanted) == {"", "control", "v2"}
    assert {one.answer.pod for one in first if not one.variant} == {"v1"}
    assert not any(one.stamp for one in first if not one.variant)
    for _ in range(3):
        again = await scene.ask("/reserved", *({"cookie": c[1]} for c in cookies if c))
        assert [one.variant for one in again] == wanted
        assert not any("set-cookie" in one.answer.headers for one in again)


async def test_session_is_issued_anew_when_the_cookie_is_not_of_its_form(scene: Scene) -> None:
    (bad,) = await scene.ask("/session", {"cookie": "sid=me"})
    assert COOKIE.fullmatch(bad.answer.headers["set-cookie"])
    assert "set-cookie" not in (await scene.one("/plain", x_user_id="u")).answer.headers


async def test_verified_claim_decides_when_envoy_has_verified_the_token(scene: Scene) -> None:
    bearers = [{"authorization": f"Bearer {signed_jwt({'sub': user})}"} for user in USERS]
    served = await scene.ask("/claim", *bearers)
    wanted = [scene.world.expected("claim", user) for user in USERS]
    assert [one.variant for one in served] == wanted
    assert set(wanted) == {"control", "v2"}


async def test_baseline_serves_when_the_token_is_missing_forged_or_without_the_claim(
    scene: Scene,
) -> None:
    tokens = [
        signed_jwt({"sub": "u"}, key=b"somebody else's key, 32 bytes ..."),
        signed_jwt({"sub": "u"}, lasts_s=-3600),
        signed_jwt({"iss": "https://others.test", "sub": "u"}),
        signed_jwt({"sub": "u"}).rpartition(".")[0] + ".",
        signed_jwt({"user": "u"}),
        signed_jwt({"sub": {"name": "u"}}),
        signed_jwt({"sub": 1.5}),
        "no token at all",
    ]
    served = await scene.ask("/claim", {}, *({"authorization": f"Bearer {t}"} for t in tokens))
    assert [(one.answer.pod, one.variant) for one in served] == [("v1", "")] * len(served)


async def test_unverified_claim_decides_when_it_was_asked_for(scene: Scene) -> None:
    forged = [signed_jwt({"realm": {"user": user}}, key=b"anything") for user in USERS]
    served = await scene.ask("/unverified", *({"x-jwt": token} for token in forged))
    assert [o.variant for o in served] == [scene.world.expected("unverified", u) for u in USERS]
    odd = await scene.ask("/unverified", {}, {"x-jwt": "a.b.c"}, {"x-jwt": b"\xff.\xff.\xff"})
    assert [(one.answer.pod, one.variant) for one in odd] == [("v1", "")] * 3


async def test_query_parameter_decides_and_is_percent_decoded(scene: Scene) -> None:
    for user in ("u1", "u2", "u3", "u4", "u5"):
        served = await scene.one(f"/query/x?a=1&user={user}&user=other")
        assert served.variant == scene.world.expected("query", user)
    encoded = await scene.one("/query?user=%6dax+%C3%BC")
    assert encoded.variant == scene.world.expected("query", "max \u00fc")
    assert (await scene.one("/query?usr=u1&user=")).variant == ""


# -- Layers ----------------------------------------------------------------------------------------


async def test_two_layers_decide_independently_when_both_try_one_request(scene: Scene) -> None:
    served = await scene.ask("/layers", *({"x-user-id": user} for user in USERS))
    both = Counter[tuple[str, str]]()
    for user, one in zip(USERS, served, strict=True):
        routed = scene.world.expected("layers", user)
        limit = scene.world.expected("limit", user)
        assert (one.variant, one.answer.pod) == (routed, "v1" if routed == "control" else "v2")
        assert one.seen.headers["x-param-limit"] == ("low" if limit == "control" else "high")
        # The models' entry is the first.
        heads = [entry.rsplit(";", 1)[0] for entry in one.stamp]
        assert heads == [f"layers;1;{routed};0", f"limit;1;{limit};0"]
        both[routed, limit] += 1
    assert len(both) == 4


async def test_parameter_alone_goes_to_the_baseline_and_names_no_variant(scene: Scene) -> None:
    served = await scene.ask("/parameter", *({"x-user-id": user} for user in USERS))
    for user, one in zip(USERS, served, strict=True):
        wanted = scene.world.expected("alone", user)
        assert (one.answer.pod, one.variant) == ("v1", "")
        assert one.seen.headers["x-param-threshold"] == ("low" if wanted == "control" else "high")
        assert one.stamp[0].startswith(f"alone;1;{wanted};0;")
    assert len({one.seen.headers["x-param-threshold"] for one in served}) == 2


async def test_experiments_of_one_layer_never_share_a_user(scene: Scene) -> None:
    served = await scene.ask("/exclusive", *({"x-user-id": user} for user in USERS))
    found = Counter[str]()
    for user, one in zip(USERS, served, strict=True):
        place = place_of("layer-exclusive-models", user)
        owner = "first" if place < 500_000 else "second" if place < 750_000 else ""
        found[owner] += 1
        assert [entry.split(";")[0] for entry in one.stamp] == ([owner] if owner else [])
        assert one.variant == (scene.world.expected(owner, user) if owner else "")
    assert len(found) == 3


async def test_held_out_users_are_served_by_the_baseline_unstamped(scene: Scene) -> None:
    served = await scene.ask("/holdout", *({"x-user-id": user} for user in USERS))
    held_out = [place_of(HOLDOUT, user) < HELD_OUT for user in USERS]
    assert [not one.stamp for one in served] == held_out
    assert 0 < sum(held_out) < len(USERS)
    assert {o.answer.pod for o, out in zip(served, held_out, strict=True) if out} == {"v1"}


# -- Overrides -------------------------------------------------------------------------------------


async def test_allow_listed_units_get_their_variant_and_are_marked(scene: Scene) -> None:
    for user, variant in ((CHOSEN, "v2"), (OPPOSED, "control"), ("anybody", "control")):
        one = await scene.one("/overrides", x_user_id=user)
        assert one.variant == variant
        assert one.stamp[0].endswith(";f") is (user != "anybody")


async def test_token_gives_its_variant_and_never_reaches_a_pod(scene: Scene) -> None:
    now = int(time.time())
    token = force_token("overrides", "v2", tenant=TENANT, issued=now, expires=now + 60,
                        key=scene.key)  # fmt: skip
    forced = await scene.one("/overrides", x_user_id="anybody", x_force_variant=token)
    assert (forced.variant, forced.answer.pod) == ("v2", "v2")
    assert forced.stamp[0].endswith(";f")
    # A list of users comes before a token.
    listed = await scene.one("/overrides", x_user_id=OPPOSED, x_force_variant=token)
    assert listed.variant == "control"
    elsewhere = await scene.one("/plain", x_user_id="u", x_force_variant=token)
    assert elsewhere.variant == scene.world.expected("plain", "u")
    for one in (forced, listed, elsewhere):
        assert "x-force-variant" not in one.seen.headers


async def test_token_changes_nothing_when_it_is_forged_expired_or_anothers(scene: Scene) -> None:
    now = int(time.time())

    def made(**changes: int | bytes | str) -> str:
        given: dict[str, object] = {"issued": now, "expires": now + 60, "key": scene.key}
        return force_token("overrides", "v2", tenant=TENANT, **(given | changes))  # type: ignore[arg-type]

    good = made()
    tokens: list[str | bytes] = [
        made(key=bytes(32)),
        made(issued=now - 120, expires=now - 60),
        made(expires=now + 2 * 86_400),
        force_token("overrides", "v9", tenant=TENANT, issued=now, expires=now + 60, key=scene.key),
        force_token("overrides", "v2", tenant="other", issued=now, expires=now + 60, key=scene.key),
        made(unit=b"somebody"),
        good[:-1],
        good + "A",
        "v1." + "A" * 5_000,
        b"\xff\xfe",
        "",
    ]
    served = await scene.ask(
        "/overrides", *({"x-user-id": "anybody", "x-force-variant": token} for token in tokens)
    )
    assert [(one.variant, one.answer.pod) for one in served] == [("control", "v1")] * len(tokens)
    assert not any(one.stamp[0].endswith(";f") for one in served)
    assert not any("x-force-variant" in one.seen.headers for one in served)


# -- Segments --------------------------------------------------------------------------------------


async def test_segment_of_expression_range_and_version_takes_only_who_fits_all(
    scene: Scene,
) -> None:
    fits = {"x-user-id": "u", "x-region": "eu-west-12", "x-age": "18", "x-app": "v1.4.0-rc.1"}
    changes: list[dict[str, str]] = [
        {},
        {"x-age": "64.9"},
        {"x-age": "65"},
        {"x-age": "1e1"},
        {"x-age": "old"},
        {"x-region": "eu-west-"},
        {"x-region": "xeu-west-1"},
        {"x-app": "2.0.0"},
        {"x-app": "1.2"},
        {"x-tester": ""},
    ]
    served = await scene.ask("/segment", *(fits | change for change in changes))
    assert [bool(one.variant) for one in served] == [True, True] + [False] * 8
    missing = dict(fits)
    del missing["x-app"]
    (without,) = await scene.ask("/segment", missing)
    assert (without.variant, without.answer.pod) == ("", "v1")


async def test_share_of_another_salt_is_independent_of_the_split(scene: Scene) -> None:
    served = await scene.ask("/share", *({"x-user-id": user} for user in USERS))
    inside = [place_of("another", user) < BUCKET_COUNT // 2 for user in USERS]
    wanted = [
        scene.world.expected("share", user) if one else ""
        for user, one in zip(USERS, inside, strict=True)
    ]
    assert [one.variant for one in served] == wanted
    assert set(wanted) == {"", "control", "v2"}


# -- Models ----------------------------------------------------------------------------------------


async def test_model_is_found_by_path_and_by_header_and_its_version_first(scene: Scene) -> None:
    user = {"x-user-id": "u"}
    paths = {
        "/v2/models/iris/infer": "iris",
        "/v1/models/iris:predict": "iris",
        "/v2/models/iris/versions/1/infer": "iris",
        "/v2/models/iris/versions/2/infer": "iris-2",
        "/v1/models/iris/versions/2:predict": "iris-2",
    }
    for path, name in paths.items():
        (one,) = await scene.ask(path, user)
        assert one.stamp[0].startswith(f"{name};1;"), path
        assert one.variant == scene.world.expected(name, "u")
    for header in MODEL_NAME_HEADERS:
        named = user | {header: "iris"}
        plain, versioned = await scene.ask("/predict", named, named | {"x-model-version": "2"})
        assert plain.stamp[0].startswith("iris;1;"), header
        assert versioned.stamp[0].startswith("iris-2;1;"), header


async def test_no_target_is_found_when_another_model_is_named(scene: Scene) -> None:
    others = [
        Request("/v2/models/iris2/infer"),
        Request("/v2/models", {"seldon-model": "Iris"}),
        Request("/predict", {"x-model-version": "2"}),
    ]
    assert {answer.status for answer in await scene.stage.send(others)} == {404}


# -- Odd headers -----------------------------------------------------------------------------------


async def test_odd_units_are_served_and_never_an_error(scene: Scene) -> None:
    odd: list[Headers] = [
        {},
        {"x-user-id": ""},
        {"x-user-id": "x" * 4_096},
        {"x-user-id": "x" * 4_097},
        {"x-user-id": "x" * 50_000},
        {"x-user-id": b"\xff\xfe\x80"},
        {"x-user-id": ["first", "second"]},
        {"x-user-id": "a,b"},
    ]
    served = await scene.ask("/plain", *odd)
    units = [None, None, b"x" * 4_096, None, None, b"\xff\xfe\x80", b"first", b"a,b"]
    wanted = ["" if unit is None else scene.world.expected("plain", unit) for unit in units]
    assert [one.variant for one in served] == wanted


async def test_gigantic_headers_are_envoys_to_refuse_and_nobody_else_notices(scene: Scene) -> None:
    before = await scene.stage.unstamped()
    huge = "x" * 70_000
    # Connections of their own: Envoy closes them.
    with closing(Client(scene.stage.port)) as client:
        sent = [Request("/plain", {name: huge}) for name in ("x-user-id", "x-a")]
        assert [answer.status for answer in await client.send(sent)] == [431, 431]
    assert await scene.stage.unstamped() == before
    assert (await scene.one("/plain", x_user_id="u")).variant == scene.world.expected("plain", "u")


async def test_first_of_several_cookies_and_tokens_counts(scene: Scene) -> None:
    one, other = "0" * 32, "f" * 32
    first, second = await scene.ask(
        "/session",
        {"cookie": [f"sid={one}", f"sid={other}"]},
        {"cookie": f"sid={other}; sid={one}"},
    )
    assert first.variant == scene.world.expected("session", one)
    assert second.variant == scene.world.expected("session", other)
    now = int(time.time())
    good = force_token("overrides", "v2", tenant=TENANT, issued=now, expires=now + 60,
                       key=scene.key)  # fmt: skip
    forced, not_forced = await scene.ask(
        "/overrides",
        {"x-user-id": "anybody", "x-force-variant": [good, "bad"]},
        {"x-user-id": "anybody", "x-force-variant": ["bad", good]},
    )
    assert (forced.variant, not_forced.variant) == ("v2", "control")


async def test_clients_cannot_say_what_only_the_sidecar_may(scene: Scene) -> None:
    forged = {
        "x-variant": "v2",
        "x-turnout": "plain;1;v2;0;0123456789abcdef",
        "x-turnout-upstream": "turnout.fraud.0",
        "x-turnout-set-cookie": "sid=mine",
        "x-param-limit": "none",
    }
    (bare, user) = await scene.ask("/plain", forged, forged | {"x-user-id": "u"})
    assert (bare.variant, bare.answer.pod, bare.stamp) == ("", "v1", [])
    assert user.variant == scene.world.expected("plain", "u")
    for one in (bare, user):
        assert "set-cookie" not in one.answer.headers
        assert not {"x-param-limit", "x-turnout-set-cookie"} & one.seen.headers.keys()
