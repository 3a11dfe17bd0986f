"""The tables of the store, as its newest migration leaves them."""

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

# SQLite's rowid alias must be INTEGER; AUTOINCREMENT so that an id is never given twice.
_ID = BigInteger().with_variant(Integer(), "sqlite")

tenants = Table(
    "tenants",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("key", LargeBinary, nullable=False),
)

resources = Table(
    "resources",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("uid", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("etag", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("create_ms", BigInteger, nullable=False),
    Column("update_ms", BigInteger, nullable=False),
)

epochs = Table(
    "epochs",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("experiment", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
)

tombstones = Table(
    "tombstones",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("experiment", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("tenant", Text, nullable=False),
    Column("experiment", Text, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("action", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("decisions_by_experiment", "tenant", "experiment", "id"),
    sqlite_autoincrement=True,
)

audits = Table(
    "audits",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("tenant", Text, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("before_json", Text, nullable=False),
    Column("after_json", Text, nullable=False),
    Index("audits_by_tenant", "tenant", "id"),
    Index("audits_by_resource", "tenant", "resource", "id"),
    sqlite_autoincrement=True,
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("time_ms", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

answers = Table(
    "answers",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("method", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Index("answers_by_time", "time_ms"),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("tenant", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_ms", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("alerts_by_due", "next_attempt_ms"),
    sqlite_autoincrement=True,
)

# A delta is unique by (tenant, source, seq); other kinds have no number and store NULL, which SQL
# never counts as equal.
journal = Table(
    "journal",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("tenant", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("seq", BigInteger, nullable=True),
    Column("received_ms", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    UniqueConstraint("tenant", "source", "seq", name="journal_once"),
    Index("journal_by_tenant", "tenant", "id"),
    sqlite_autoincrement=True,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("journal_id", BigInteger, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)
