"""Every error of the Kafka client as one of ours, by what the caller can do about it.

One function translates; a test enumerates the library's codes and fails for one that no category names.
"""

from collections.abc import Mapping

from confluent_kafka import KafkaError, KafkaException

from app.core.errors import (
    BadRecord,
    Fenced,
    HeadraceError,
    RecordError,
    RecordTooEarly,
    RecordTooLarge,
    Rejected,
    SetupError,
    Unavailable,
)
from app.core.security import BrokerSecurity

UNAVAILABLE = [
    "BROKER_NOT_AVAILABLE",
    "CONCURRENT_TRANSACTIONS",
    "COORDINATOR_LOAD_IN_PROGRESS",
    "COORDINATOR_NOT_AVAILABLE",
    "DUPLICATE_SEQUENCE_NUMBER",
    "ELIGIBLE_LEADERS_NOT_AVAILABLE",
    "FENCED_LEADER_EPOCH",
    "FETCH_SESSION_ID_NOT_FOUND",
    "INCONSISTENT_TOPIC_ID",
    "INVALID_FETCH_SESSION_EPOCH",
    "INVALID_PRODUCER_EPOCH",
    "INVALID_PRODUCER_ID_MAPPING",
    "INVALID_SHARE_SESSION_EPOCH",
    "KAFKA_STORAGE_ERROR",
    "LEADER_NOT_AVAILABLE",
    "LISTENER_NOT_FOUND",
    "LOG_DIR_NOT_FOUND",
    "NETWORK_EXCEPTION",
    "NOT_CONTROLLER",
    "NOT_COORDINATOR",
    "NOT_ENOUGH_REPLICAS",
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    "NOT_LEADER_FOR_PARTITION",
    "NO_REASSIGNMENT_IN_PROGRESS",
    "OFFSET_NOT_AVAILABLE",
    "OPERATION_NOT_ATTEMPTED",
    "OUT_OF_ORDER_SEQUENCE_NUMBER",
    "PREFERRED_LEADER_NOT_AVAILABLE",
    "REASSIGNMENT_IN_PROGRESS",
    "REBALANCE_IN_PROGRESS",
    "REBOOTSTRAP_REQUIRED",
    "REPLICA_NOT_AVAILABLE",
    "REQUEST_TIMED_OUT",
    "SHARE_SESSION_LIMIT_REACHED",
    "SHARE_SESSION_NOT_FOUND",
    "STALE_BROKER_EPOCH",
    "STALE_CTRL_EPOCH",
    "THROTTLING_QUOTA_EXCEEDED",
    "UNKNOWN_CONTROLLER_ID",
    "UNKNOWN_LEADER_EPOCH",
    "UNKNOWN_PRODUCER_ID",
    "UNKNOWN_SUBSCRIPTION_ID",
    "UNSTABLE_OFFSET_COMMIT",
    "_ALL_BROKERS_DOWN",
    "_CRIT_SYS_RESOURCE",
    "_DESTROY",
    "_DESTROY_BROKER",
    "_FAIL",
    "_INTR",
    "_IN_PROGRESS",
    "_ISR_INSUFF",
    "_MAX_POLL_EXCEEDED",
    "_MSG_TIMED_OUT",
    "_NODE_UPDATE",
    "_NOENT",
    "_NOOP",
    "_NO_OFFSET",
    "_OUTDATED",
    "_PARTIAL",
    "_PREV_IN_PROGRESS",
    "_PURGE_INFLIGHT",
    "_PURGE_QUEUE",
    "_QUEUE_FULL",
    "_RESOLVE",
    "_RETRY",
    "_SSL",
    "_TIMED_OUT",
    "_TIMED_OUT_QUEUE",
    "_TRANSPORT",
    "_UNDERFLOW",
    "_UNKNOWN_BROKER",
    "_WAIT_CACHE",
    "_WAIT_COORD",
]
"""A server does not answer, or not yet; or the producer's session is lost, and another one begins (see `clients`)."""

FENCED = [
    "FENCED_INSTANCE_ID",
    "FENCED_MEMBER_EPOCH",
    "FENCED_STATE_EPOCH",
    "ILLEGAL_GENERATION",
    "MEMBER_ID_REQUIRED",
    "PRODUCER_FENCED",
    "STALE_MEMBER_EPOCH",
    "STREAMS_TOPOLOGY_FENCED",
    "TRANSACTION_COORDINATOR_FENCED",
    "UNKNOWN_MEMBER_ID",
    "UNRELEASED_INSTANCE_ID",
    "_ASSIGNMENT_LOST",
    "_FENCED",
]
"""The partition or the position is another's."""

TOO_LARGE = ["INVALID_MSG_SIZE", "MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"]
TOO_EARLY = ["INVALID_TIMESTAMP"]
BAD_RECORD = [
    "INVALID_MSG",
    "INVALID_RECORD",
    "PRINCIPAL_DESERIALIZATION_FAILURE",
    "_BAD_COMPRESSION",
    "_BAD_MSG",
    "_INVALID_DIFFERENT_RECORD",
    "_KEY_DESERIALIZATION",
    "_KEY_SERIALIZATION",
    "_VALUE_DESERIALIZATION",
    "_VALUE_SERIALIZATION",
]
"""This one record."""

REJECTED = [
    "CLUSTER_AUTHORIZATION_FAILED",
    "DELEGATION_TOKEN_AUTHORIZATION_FAILED",
    "DELEGATION_TOKEN_AUTH_DISABLED",
    "DELEGATION_TOKEN_EXPIRED",
    "DELEGATION_TOKEN_NOT_FOUND",
    "DELEGATION_TOKEN_OWNER_MISMATCH",
    "DELEGATION_TOKEN_REQUEST_NOT_ALLOWED",
    "DUPLICATE_RESOURCE",
    "DUPLICATE_VOTER",
    "ELECTION_NOT_NEEDED",
    "FEATURE_UPDATE_FAILED",
    "GROUP_AUTHORIZATION_FAILED",
    "GROUP_ID_NOT_FOUND",
    "GROUP_MAX_SIZE_REACHED",
    "GROUP_SUBSCRIBED_TO_TOPIC",
    "ILLEGAL_SASL_STATE",
    "INCONSISTENT_GROUP_PROTOCOL",
    "INCONSISTENT_VOTER_SET",
    "INVALID_COMMIT_OFFSET_SIZE",
    "INVALID_CONFIG",
    "INVALID_GROUP_ID",
    "INVALID_PARTITIONS",
    "INVALID_PRINCIPAL_TYPE",
    "INVALID_RECORD_STATE",
    "INVALID_REGISTRATION",
    "INVALID_REGULAR_EXPRESSION",
    "INVALID_REPLICATION_FACTOR",
    "INVALID_REPLICA_ASSIGNMENT",
    "INVALID_REQUEST",
    "INVALID_REQUIRED_ACKS",
    "INVALID_SESSION_TIMEOUT",
    "INVALID_TRANSACTION_TIMEOUT",
    "INVALID_TXN_STATE",
    "INVALID_UPDATE_VERSION",
    "INVALID_VOTER_KEY",
    "MISMATCHED_ENDPOINT_TYPE",
    "NON_EMPTY_GROUP",
    "NO_ERROR",
    "OFFSET_METADATA_TOO_LARGE",
    "OFFSET_OUT_OF_RANGE",
    "POLICY_VIOLATION",
    "RESOURCE_NOT_FOUND",
    "SASL_AUTHENTICATION_FAILED",
    "SECURITY_DISABLED",
    "STREAMS_INVALID_TOPOLOGY",
    "STREAMS_INVALID_TOPOLOGY_EPOCH",
    "TELEMETRY_TOO_LARGE",
    "TOPIC_ALREADY_EXISTS",
    "TOPIC_AUTHORIZATION_FAILED",
    "TOPIC_DELETION_DISABLED",
    "TOPIC_EXCEPTION",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
    "TRANSACTION_ABORTABLE",
    "UNACCEPTABLE_CREDENTIAL",
    "UNKNOWN",
    "UNKNOWN_TOPIC_ID",
    "UNKNOWN_TOPIC_OR_PART",
    "UNSUPPORTED_ASSIGNOR",
    "UNSUPPORTED_COMPRESSION_TYPE",
    "UNSUPPORTED_ENDPOINT_TYPE",
    "UNSUPPORTED_FOR_MESSAGE_FORMAT",
    "UNSUPPORTED_SASL_MECHANISM",
    "UNSUPPORTED_VERSION",
    "VOTER_NOT_FOUND",
    "_APPLICATION",
    "_ASSIGN_PARTITIONS",
    "_AUTHENTICATION",
    "_AUTO_OFFSET_RESET",
    "_CONFLICT",
    "_EXISTING_SUBSCRIPTION",
    "_FATAL",
    "_FS",
    "_GAPLESS_GUARANTEE",
    "_INCONSISTENT",
    "_INVALID_ARG",
    "_INVALID_TYPE",
    "_LOG_TRUNCATION",
    "_NOT_CONFIGURED",
    "_NOT_IMPLEMENTED",
    "_PARTITION_EOF",
    "_READ_ONLY",
    "_REVOKE_PARTITIONS",
    "_STATE",
    "_UNKNOWN_GROUP",
    "_UNKNOWN_PARTITION",
    "_UNKNOWN_PROTOCOL",
    "_UNKNOWN_TOPIC",
    "_UNSUPPORTED_FEATURE",
]
"""Understood, and refused for good."""

_CLASSES: Mapping[str, type[HeadraceError]] = {
    **dict.fromkeys(UNAVAILABLE, Unavailable),
    **dict.fromkeys(FENCED, Fenced),
    **dict.fromkeys(TOO_LARGE, RecordTooLarge),
    **dict.fromkeys(TOO_EARLY, RecordTooEarly),
    **dict.fromkeys(BAD_RECORD, BadRecord),
    **dict.fromkeys(REJECTED, Rejected),
}

NO_ANSWER_CODES = frozenset({KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE})
UNKNOWN_TOPIC_CODES = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
)
WHOLE_BATCH_CODES = frozenset(
    code
    for name in (*TOO_LARGE, *TOO_EARLY, "INVALID_RECORD", "_INVALID_DIFFERENT_RECORD")
    if isinstance(code := getattr(KafkaError, name), int)
)
"""Errors that a broker gives to all records of a batch because of one of them."""

_CODES = {code: kind for name, kind in _CLASSES.items() if isinstance(code := getattr(KafkaError, name, None), int)}


LACKED_RIGHTS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "cluster",
}
"""Of what a right is missing."""

_LACKED_SAID = {KafkaError(code).str(): of for code, of in LACKED_RIGHTS.items()}
"""The same, as the reason of a fatal error says it: that has a code of its own."""


def translate(failure: KafkaError | KafkaException, place: str, right: str = "Describe") -> HeadraceError:
    """Our error for one of the client's. `place` says what it is about: an address, a topic, a group. `right` is the one
    that was needed for it.

    A code that this list does not know, from a newer broker, is retriable if the client calls it so, else refused.
    """
    error = failure.args[0] if isinstance(failure, KafkaException) else failure
    if not isinstance(error, KafkaError):
        return Rejected(f"{place}: {error}")
    code, reason = error.code(), " ".join(error.str().split())
    lacked = LACKED_RIGHTS.get(code) or next(
        (of for said, of in _LACKED_SAID.items() if (code == KafkaError._FATAL or error.fatal()) and said in reason),
        None,
    )
    if lacked is not None:
        return Rejected(
            f"{place}: the right {right} on this {lacked} is missing; what each role needs: "
            f"python -m app topics rights ({reason})"
        )
    if error.fatal():
        return Rejected(f"{place}: {reason}")
    if code in UNKNOWN_TOPIC_CODES:
        return Rejected(f"{place}: unknown topic or partition; create it with: python -m app topics create")
    if code in NO_ANSWER_CODES:
        return Unavailable(f"{place}: no broker answers ({reason})")
    kind = _CODES.get(code) or (Unavailable if error.retriable() else Rejected)
    if issubclass(kind, RecordError):
        return kind(reason, topic=place)
    return kind(f"{place}: {reason}")


def refused_login(reason: str, security: BrokerSecurity) -> HeadraceError:
    """What the client says when a broker refused who we said we are, as the setting to look at."""
    asked, offered, mechanisms = reason.partition("broker's supported mechanisms: ")
    if offered and not mechanisms.split(" (")[0]:
        return SetupError("broker_user", "must be empty: the brokers ask nobody who he is there")
    if offered:
        return SetupError("broker_mechanism", f"{security.mechanism} is not among {mechanisms.split(' (')[0]}")
    if "invalid credentials" in reason:
        return SetupError("broker_password", f"the brokers do not know user {security.user} with this password")
    return SetupError("broker_user", f"the brokers refuse {security.user}: {asked}")
