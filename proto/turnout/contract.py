"""Names, sizes and formats that sidecar and control plane must agree on.

Data only: every computation has one home on one of the two sides, and `tests/vectors` proves that
they agree.
"""

from typing import Final

# -- Headers ---------------------------------------------------------------------------------------
HEADER_VARIANT: Final = "x-variant"
HEADER_STAMP: Final = "x-turnout"
HEADER_UPSTREAM: Final = "x-turnout-upstream"
HEADER_SHADOW: Final = "x-turnout-shadow"
# On a request that is mirrored: <experiment>;<epoch>;<shadow variant>. The mirror policy copies it
# into HEADER_SHADOW_OF on the copy, so that the marker is on copies alone.
HEADER_SHADOW_VARIANT: Final = "x-turnout-shadow-variant"
HEADER_SHADOW_OF: Final = "x-turnout-shadow-of"
# Set by the route on what went to the baseline although the filter was on: its access-log entry
# may say why. Requests with neither this nor a stamp are not logged: a target at rest costs
# nothing.
HEADER_UNSTAMPED: Final = "x-turnout-unstamped"
# With a session unit whose cookie is missing: the whole value of a Set-Cookie, which the route
# copies into the response, the baseline's too: it is there with or without a stamp.
HEADER_SET_COOKIE: Final = "x-turnout-set-cookie"
# From clients: a signed token that gives its bearer a variant (see FORCE_*). Removed before the
# upstream.
HEADER_FORCE: Final = "x-force-variant"
# Between sidecars that intercept transparently: this request has been decided (see HOP_*). Not
# below x-turnout-, which Envoy strips from everybody. Removed before the model.
HEADER_HOP: Final = "x-hop-turnout"
HEADER_REQUEST_ID: Final = "x-request-id"
HEADER_PARAMETER_PREFIX: Final = "x-param-"
# Who names a model in a header, for `modelName` and `modelVersion` of a target's match: KServe
# ModelMesh (mm-vmodel-id, mm-model-id: HTTP header and gRPC metadata), Seldon Core 2 and MLServer
# behind it (seldon-model), KServe's LLMInferenceService behind the Gateway API Inference Extension
# (x-gateway-model-name, taken from an OpenAI body). Triton and KServe's own servers read name and
# version from the path alone (Open Inference Protocol), over gRPC from the message, which no proxy
# sees; no server of these has a header for a version. x-model-name and x-model-version are what
# their clients can add (`headers=` of tritonclient, `headers` of KServe's InferenceGRPCClient).
# Sources: docs of kserve/modelmesh-serving, docs.seldon.ai/seldon-core-2 (inference), GKE's
# "Configure Body-Based Routing", kserve/open-inference-protocol (inference_rest), kserve#4655.
MODEL_NAME_HEADERS: Final = (
    "mm-vmodel-id",
    "mm-model-id",
    "seldon-model",
    "x-gateway-model-name",
    "x-model-name",
)
MODEL_VERSION_HEADERS: Final = ("x-model-version",)
# What a client may not say: Envoy removes these before it looks at the route.
RESERVED_HEADERS: Final = (HEADER_VARIANT, HEADER_STAMP)
RESERVED_HEADER_PREFIXES: Final = ("x-turnout-", HEADER_PARAMETER_PREFIX, "x-envoy-")

# The stamp: one entry per assignment, separated by ',':
#   <experiment>;<epoch>;<variant>;<stratum>;<unit hash as 16 lower-case hex digits>[;f]
# A trailing ';f' marks a forced assignment. 16 hex digits: a fixed width that can be spliced.
STAMP_SEPARATOR: Final = ","
STAMP_FIELD_SEPARATOR: Final = ";"
UNIT_HASH_HEX_DIGITS: Final = 16

# -- Assignment ------------------------------------------------------------------------------------
# bucket = xxh3_64(salt + NUL + unit) mod BUCKET_COUNT; weights are parts per million.
BUCKET_COUNT: Final = 1_000_000
HASH_VERSION: Final = 1
LAYER_MODELS: Final = "models"
UNIT_BYTES_MAX: Final = 4096  # a longer unit is no unit, and counted
TENANT_KEY_BYTES: Final = 32  # keyed BLAKE2b, digest 8 bytes, read little endian

# -- Force tokens and hop marks --------------------------------------------------------------------
# token = "v1." + base64url(payload) + "." + base64url(mac), without padding.
# payload = tenant;experiment;variant;issued;expires;unit - Unix seconds in decimal, the unit as
# base64url without padding, empty = any unit.
# mac = BLAKE2b(payload, key = tenant key, digest 16 bytes, person = FORCE_PERSON).
FORCE_VERSION: Final = "v1"
FORCE_SEPARATOR: Final = ";"
FORCE_PERSON: Final = b"turnout-force"
FORCE_MAC_BYTES: Final = 16
FORCE_SECONDS_MAX: Final = 24 * 3600
FORCE_TOKEN_BYTES_MAX: Final = 1024
CLOCK_SKEW_S: Final = 60  # issued that far in the future is still believed
# mark = <Unix seconds in hex>.<mac in hex>
# mac = BLAKE2b(seconds in hex + NUL + tenant + NUL + request id, key = tenant key, digest 8 bytes,
# person = HOP_PERSON). Good for HOP_SECONDS_MAX either way.
# In place of a mark, on the health checks of an Envoy that intercepts.
HOP_HEALTH: Final = "health"
HOP_PERSON: Final = b"turnout-hop"
HOP_MAC_BYTES: Final = 8
HOP_SECONDS_MAX: Final = 60

# -- Sessions --------------------------------------------------------------------------------------
SESSION_COOKIE: Final = "turnout-session"
SESSION_ID_HEX_DIGITS: Final = 32

# -- Snapshot file: MAGIC + BLAKE2b-256 of the payload + payload (the encoded Snapshot) ------------
SNAPSHOT_MAGIC: Final = b"TURNOUT\x01"
SNAPSHOT_DIGEST_BYTES: Final = 32
SNAPSHOT_FORMAT: Final = 1
SNAPSHOT_BYTES_MAX: Final = 16 * 1024 * 1024

# -- Evidence --------------------------------------------------------------------------------------
TIME_BUCKET_S: Final = 10
# A unit's first bad event is kept once per slot. A lane's block begins at every
# FIRST_BAD_BLOCK_EVERY-th slot and lives FIRST_BAD_BLOCK_SLOTS of them: an hour, begun every 5
# minutes. Slots shorter than that let a block restart its count (see control/rollout/lanes.py),
# which halves the time to find a late change.
FIRST_BAD_SLOT_S: Final = 60
FIRST_BAD_BLOCK_EVERY: Final = 5
FIRST_BAD_BLOCK_SLOTS: Final = 60
FIRST_BAD_UNITS_MAX: Final = 65_536
# Sums that variances are computed from are kept by bucket of units: the unit hash's top bits. The
# hash is keyed and not the assignment's, so a bucket says nothing about the variant. A unit is in
# the sample that the sample ratio is tested on when its bits from UNIT_SAMPLE_BIT up are 0, as many
# as the shift says: other bits than the buckets' and than those of first bad events (from bit 0).
UNIT_BUCKETS: Final = 1024
UNIT_BUCKET_SHIFT: Final = 54
BUCKET_INCREMENT_MAX: Final = 2**31  # of one delta
UNIT_SAMPLE_BIT: Final = 24
UNIT_SAMPLE_SHIFT_MAX: Final = 30
UNIT_SAMPLE_MAX: Final = 65_536  # units of one epoch, over all variants
LATENCY_THRESHOLDS_MAX: Final = 16
# DDSketch (Masson, Rim, Lee 2019, arXiv 1908.10693): bin i holds (gamma^(i-1), gamma^i]
# milliseconds.
LATENCY_SKETCH_ALPHA: Final = 0.01
LATENCY_SKETCH_GAMMA: Final = (1 + LATENCY_SKETCH_ALPHA) / (1 - LATENCY_SKETCH_ALPHA)
LATENCY_MIN_MS: Final = 0.001

# -- Spans (OTLP attributes) -----------------------------------------------------------------------
ATTRIBUTE_REQUEST_ID: Final = "turnout.request_id"
ATTRIBUTE_ENVOY_REQUEST_ID: Final = "guid:x-request-id"
ATTRIBUTE_PREDICTION: Final = "turnout.prediction"
ATTRIBUTE_LABEL: Final = "turnout.label"
ATTRIBUTE_SCORE: Final = "turnout.score"
ATTRIBUTE_COST: Final = "turnout.cost"
# True on a span that answered a mirrored copy (the request carried x-turnout-shadow-of).
ATTRIBUTE_SHADOW: Final = "turnout.shadow"

# On Envoy's own span of a stamped request. Semantic conventions know feature flags only; what they
# have no word for has our prefix.
ATTRIBUTE_EXPERIMENT: Final = "turnout.experiment"
ATTRIBUTE_EPOCH: Final = "turnout.epoch"
ATTRIBUTE_STEP: Final = "turnout.step"
ATTRIBUTE_VARIANT: Final = "turnout.variant"
ATTRIBUTE_STAMP: Final = "turnout.stamp"
ATTRIBUTE_FLAG_KEY: Final = "feature_flag.key"
ATTRIBUTE_FLAG_VARIANT: Final = "feature_flag.result.variant"
ATTRIBUTE_FLAG_REASON: Final = "feature_flag.result.reason"
ATTRIBUTE_FLAG_PROVIDER: Final = "feature_flag.provider.name"

# -- Envoy -----------------------------------------------------------------------------------------
EXT_PROC_FILTER: Final = "turnout"  # the filter's configured name, and the key of its filter state
EXT_PROC_STAT_PREFIX: Final = "turnout"
HCM_STAT_PREFIX: Final = "turnout"
ROUTE_CONFIG_NAME: Final = "turnout"
ACCESS_LOG_SERVED: Final = "turnout_served"
ACCESS_LOG_SHADOW: Final = "turnout_shadow"
# The access log's custom tag with ext_proc's call status as a decimal: 0 answered, 4 timeout, 10
# closed without an answer, 14 unreachable, other codes as the worker's; absent where the filter is
# off. The whole filter state would add 650 bytes to every entry (measured: 1,100 instead of 450).
ACCESS_LOG_CALL_STATUS: Final = "c"
WORKERS_CLUSTER: Final = "turnout_workers"
OTLP_CLUSTER: Final = "turnout_otlp"
# Transparent proxying: wherever the client's connection was going to, as the kernel knows it.
LOCAL_CLUSTER: Final = "turnout_local"
CLUSTER_PREFIX: Final = "turnout."
# Routes are named turnout/<target>/<stamped|baseline>.
ROUTE_NAME_PREFIX: Final = "turnout/"
# The stamped route's metadata, from which the tracer has what no header says.
ROUTE_METADATA: Final = "turnout"
METADATA_EXPERIMENT: Final = "experiment"
METADATA_EPOCH: Final = "epoch"
METADATA_STEP: Final = "step"
METADATA_REASON: Final = "reason"
METADATA_PROVIDER: Final = "provider"

# -- Limits ----------------------------------------------------------------------------------------
RESOURCE_BYTES_MAX: Final = 256 * 1024
RESOURCE_DEPTH_MAX: Final = 20
VARIANTS_MAX: Final = 64
STRATA_MAX: Final = 16
STEPS_MAX: Final = 32
EXPERIMENTS_PER_TENANT_MAX: Final = 1000
EXPERIMENTS_PER_TARGET_MAX: Final = 64  # that run at once
LAYERS_PER_TARGET_MAX: Final = 16  # with an experiment that runs
OUTCOMES_PER_CALL_MAX: Final = 10_000
GRPC_MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
