"""Requests, generated from a `random.Random` for a world.

Owns what clients send, good and bad: names and values that the worlds ask for, and what nobody
should send.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from tests.differential import values
from tests.differential.oracle import JWT_NAMESPACE, World
from tests.vectors.make_tokens import base64url, force_token
from turnout.contract import MODEL_NAME_HEADERS, MODEL_VERSION_HEADERS
from turnout.envoy.ext_proc_pb2 import ProcessingRequest
from turnout.v1alpha1.snapshot_pb2 import TargetPlan

VALUES: Final = (
    b"", b"a", b"ab", b"a.b", b"gold", b"silverx", b"user-1", b"user-2", b"u", b"7", b"true",
    "\u00dcnit".encode(), b"user-1 ", b"\xff\xfe\xc3(", b"a\xff", b"nan", b"u" * 255,
)  # fmt: skip
NUMBERS: Final = (
    b"1", b"+1", b"-0", b"0", b"1.5", b"2.50", b"1e2", b"1E-2", b"1e400",
    b"-1e400", b"-5", b"inf", b"NaN",
    b"1_0", b" 1", b"1 ", b"0x10", b"1.", b".5", b"1e", b"1e+", b"--1", b"", b"9" * 64, b"9" * 65,
    "\u0661".encode(), b"1e-400", b"99.99", b"100", b"1\n",
)  # fmt: skip
VERSIONS: Final = (
    b"1.2.3", b"v1.2.3", b"V1.2.3", b"1.2.0", b"1.9.9", b"2.0.0", b"2.0.0-alpha", b"0.2.3",
    b"0.2.9", b"0.3.0", b"0.0.3", b"0.0.4", b"1.0.0-alpha", b"1.0.0-alpha.1", b"1.0.0-alpha.beta",
    b"1.0.0-beta", b"1.0.0-beta.2", b"1.0.0-beta.11", b"1.0.0-rc.1", b"1.0.0", b"1.0.0+build.7",
    b"1.0.0-0", b"1.2", b"1", b"01.2.3", b"1.2.3-01", b"1.2.3-", b"1.2.3+", b"1.2.3.4", b"1.2.x",
    b"", b"=1.2.3", b"1.2.3 ", b"-1.2.3", b"1.2.3-a..b", b"0.0.0", b"999999999999999999999.0.0",
    "1.2.\u0663".encode(),
)  # fmt: skip
HOSTS: Final = (
    b"a.test", b"A.TEST", b"b.test:8080", b"x.a.test", b"y.x.a.test:443", b".test", b"test",
    b"[::1]:80", b"[::1]", b"::1", b"upper.test", b"other", b"", b"a.test:", b"a.test:x",
)  # fmt: skip
PATHS: Final = (
    b"/", b"/v2", b"/v2/models/fraud", b"/v2/models/fraud/infer", b"/v2/models/fraudulent",
    b"/v2/models/fraud/versions/1/infer", b"/v2/models/m.1/versions/v2.0",
    b"/v1/models/net_x:predict",
    b"/v1/models/fraud/versions/2:predict", b"/fraud", b"/fraud/", b"/fraud/v2/models/fraud/infer",
    b"/v1", b"/v2/models/mx1", b"*", b"/fraud/v1/models/fraud:explain", b"/V2", b"/v2%2Fmodels",
)  # fmt: skip
QUERIES: Final = (
    b"user=user-1", b"user=", b"user", b"user=a&user=b", b"u%2Bd=7", b"u+d=7", b"a+b=u", b"a%20b=u",
    b"u%3D=true", b"user=%55", b"user=%zz", b"user=%", b"user=%5", b"user=a+b", b"user=%c3%9cnit",
    b"us%65r=user-2", b"x=1&user=user-2;y=2", b"&&user=u&", b"User=u", b"user==u", b"user=%00",
    b"user=" + b"u" * 4097, b"user=" + b"%75" * 4096, b"", b"?user=u", b"user=u#user=x",
)  # fmt: skip
COOKIES: Final = (
    b"uid=user-1", b"uid=user-1; sid=7", b"sid=a; uid=b; uid=c", b"uid", b"uid=", b" uid = user-2 ",
    b"uid=\"user-1\"", b";;uid=u;", b"UID=u", b"xuid=u; uid=\xff", b"uid=a=b", b"",
    b"turnout-session=0123456789abcdef0123456789abcdef", b"turnout-session=short",
    b"turnout-session=0123456789abcdef0123456789abcdeg",
    b"uid=x; turnout-session=00000000000000000000000000000000; turnout-session=1",
    b"uid=" + b"u" * 4096, b"uid=" + b"u" * 4097,
)  # fmt: skip
CLAIMS: Final[tuple[Any, ...]] = (
    "user-1", "user-2", "", 7, -7, 0, 2**53, True, False, None, 1.5, 1e300, [], ["user-1"], {},
    {"user": "user-1"}, "\u00dcnit", "u" * 5000,
)  # fmt: skip
RAW_PAYLOADS: Final = (
    b"", b"{", b"[]", b"7", b'"sub"', b'{"sub":"\\ud800"}', b'{"sub":"a","sub":"user-1"}',
    b'\xef\xbb\xbf{"sub":"user-1"}', b'{"sub":"\xff"}', b'{"sub":NaN}', b'{"sub":1e5}',
    b'{"sub":-0}',
    b'{"sub":' + b"[" * 3000 + b"]" * 3000 + b"}", b'{"sub":' + b"9" * 300 + b"}",
    b'{"sub":' + b"9" * 5000 + b"}", b'{"sub":1.0}', b'{"sub":12345678901234567890}',
    b'{"sub":"a\\u0000b"}',
)  # fmt: skip


def names_of() -> tuple[str, ...]:
    """Header names that predicates ask for."""
    return ("x-a", "x-tier", "x-number", "x-version", "x-user-id", "cookie")


def make_request(random: Random, world: World) -> ProcessingRequest:
    """A request that may concern a world's targets."""
    message = ProcessingRequest()
    headers = _pseudo(random, world) + _ordinary(random, world)
    for name, value in headers:
        message.request_headers.headers.headers.add(key=name, raw_value=value)
    message.request_headers.headers.SetInParent()
    message.request_headers.end_of_stream = random.random() < 0.5
    if random.random() < 0.4:
        _add_metadata(random, message)
    return message


def _pseudo(random: Random, world: World) -> list[tuple[str, bytes]]:
    """Pseudo-headers; most of them aim at one of the targets."""
    path, host = random.choice(PATHS), random.choice(HOSTS)
    if random.random() < 0.9:
        target = random.choice(world.snapshot.targets)
        if target.hosts:
            host = random.choice(target.hosts).replace("*", random.choice("xa")).encode()
        if random.random() < 0.9:
            path = _path_of(random, target)
    if random.random() < 0.5:
        path += b"?" + random.choice(QUERIES)
    elif random.random() < 0.05:
        path += b"#user=u"
    headers = [(":authority", host), (":path", path)]
    headers.append((":method", random.choice((b"POST",) * 6 + (b"GET", b"PUT", b"post"))))
    return headers if random.random() < 0.97 else random.sample(headers, 2)


def _path_of(random: Random, target: TargetPlan) -> bytes:
    """A path that a target may have."""
    path = target.path_prefix or "/"
    if target.model_name:
        path = path.removesuffix("/v2/models").removesuffix("/v2").removesuffix("/v1")
        path = path.rstrip("/") + random.choice(("/v2", "/v1")) + f"/models/{target.model_name}"
        if target.model_version and random.random() < 0.8:
            path += f"/versions/{target.model_version}"
    return path.encode() + random.choice((b"", b"", b"/", b"/infer", b":predict", b"x"))


def _ordinary(random: Random, world: World) -> list[tuple[str, bytes]]:
    headers: list[tuple[str, bytes]] = []

    def add(name: str, values_of: Sequence[bytes], counts: Sequence[int]) -> None:
        headers.extend((name, random.choice(values_of)) for _ in range(random.choice(counts)))

    for name in ("x-user-id", "x-a", "x-tier"):
        add(name, VALUES, (0, 1, 1, 1, 2))
    add("x-user-id", [b"h" * size for size in (4095, 4096, 4097, 20_000)], (0,) * 30 + (1,))
    add("x-number", NUMBERS, (0, 1))
    add("x-version", VERSIONS, (0, 1, 1, 2))
    add("cookie", COOKIES, (0, 1, 1, 2))
    add(random.choice(MODEL_NAME_HEADERS), (b"fraud", b"m.1", b"F"), (0, 0, 1))
    add(random.choice(MODEL_VERSION_HEADERS), (b"1", b"2", b""), (0, 0, 1))
    headers += [(n, _token(random)) for n in ("authorization", "x-jwt") if random.random() < 0.4]
    request_id = b"6a2f41a3-c54c-fce8-32d2-%012d" % random.randint(0, 9)
    add("x-request-id", (request_id,), (0,) + (1,) * 9)
    if random.random() < 0.35:
        tokens = range(random.choice((1, 1, 2)))
        headers += [("x-force-variant", _force(random, world)) for _ in tokens]
    if random.random() < 0.3:
        headers.append(("x-hop-turnout", _mark(random, world, request_id)))
    random.shuffle(headers)
    return headers


def _token(random: Random) -> bytes:
    """A JSON Web Token, good, odd or broken."""
    if random.random() < 0.25:
        payload = random.choice(RAW_PAYLOADS)
    else:
        said: dict[str, Any] = {"n": random.choice(CLAIMS)}
        if random.random() < 0.9:
            said["sub"] = random.choice(CLAIMS)
        if random.random() < 0.7:
            said["realm"] = random.choice(({"user": random.choice(CLAIMS)}, 7, "user", {}))
        if random.random() < 0.2:
            said["realm.user"] = random.choice(CLAIMS)
        payload = json.dumps(said, ensure_ascii=random.random() < 0.5).encode()
    text = b"eyJhbGciOiJub25lIn0." + base64url(payload).encode() + b".c2ln"
    damage = random.random()
    if damage < 0.05:
        text = text.replace(b".", b"", 1)
    elif damage < 0.1:
        text = text[: random.randint(0, len(text))]
    elif damage < 0.13:
        text += b".more"
    return random.choice((b"", b"Bearer ", b"bearer ", b"Bearer  ", b"Basic ")) + text


def _force(random: Random, world: World) -> bytes:
    """A force token, good, odd, forged or of something else."""
    experiments = list(world.snapshot.experiments)
    experiment, variant = "unknown", "v2"
    if experiments and random.random() < 0.9:
        plan = random.choice(experiments)
        experiment = plan.name
        variant = random.choice([*(v.name for v in plan.variants), "unknown"])
    now = int(world.now_s)
    issued = now - random.choice((0, 10, 3600, -60, -61))
    key = world.key if random.random() < 0.85 else b"x" * 32
    tenant = world.snapshot.tenant if random.random() < 0.9 else "foreign"
    token = force_token(
        experiment,
        variant,
        random.choice((b"", b"", b"", b"user-1", b"user-2", b"a\xff")),
        tenant=tenant,
        issued=issued,
        expires=random.choice((now, now + 1, now + 600, issued + 86_400, issued + 86_401, issued)),
        key=key,
    ).encode()
    damage = random.random()
    if damage < 0.05:
        return token[: random.randint(0, len(token))]
    if damage < 0.1:
        place = random.randrange(len(token))
        return token[:place] + random.choice((b"=", b"A", b" ", b".", b"\xff")) + token[place + 1 :]
    return random.choice((b"", b"v1..", b"v1." + b"A" * 2000)) if damage < 0.12 else token


def _mark(random: Random, world: World, request_id: bytes) -> bytes:
    """A hop mark, good or not."""
    seconds = int(world.now_s) + random.choice((0, 0, 0, -60, 60, -62, 62, -59))
    tenant = world.snapshot.tenant if random.random() < 0.9 else "foreign"
    asked = request_id if random.random() < 0.9 else b"another"
    text = b"%x" % seconds if random.random() < 0.9 else random.choice((b"+%x", b"0x%x")) % seconds
    mark = values.hop_mark(text, key=world.key, tenant=tenant, request_id=asked)
    return mark if random.random() < 0.9 else mark[: random.randint(0, len(mark))]


def _add_metadata(random: Random, message: ProcessingRequest) -> None:
    """What Envoy's jwt_authn leaves, or what looks like it."""
    namespace = JWT_NAMESPACE if random.random() < 0.9 else "other"
    struct = message.metadata_context.filter_metadata[namespace]
    if random.random() < 0.1:
        struct["payload"] = random.choice(("text", 7, True))
        return
    payload = struct.get_or_create_struct("payload" if random.random() < 0.95 else "other")
    for name in ("sub", "n"):
        if random.random() < 0.8:
            payload[name] = random.choice(CLAIMS)
    if random.random() < 0.7:
        nested = payload.get_or_create_struct("realm")
        nested["user"] = random.choice(CLAIMS)
    if random.random() < 0.3:
        payload["realm.user"] = random.choice(CLAIMS)
