"""Every exception of aiokafka as one of ours, by what the caller can do about it.

One function translates; a test enumerates the library's classes and fails for one that no category names.
"""

import ssl
from collections.abc import Mapping

from aiokafka import errors as library

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
    "BrokerNotAvailableError",
    "Cancelled",
    "ConcurrentTransactions",
    "CorrelationIdError",
    "DuplicateSequenceNumber",
    "FetchSessionIdNotFound",
    "GroupCoordinatorNotAvailableError",
    "GroupLoadInProgressError",
    "InvalidFetchSessionEpoch",
    "InvalidProducerEpoch",
    "InvalidProducerIdMapping",
    "KafkaConnectionError",
    "KafkaProtocolError",
    "KafkaStorageError",
    "KafkaTimeoutError",
    "KafkaUnavailableError",
    "LeaderNotAvailableError",
    "ListenerNotFound",
    "LogDirNotFound",
    "MetadataEmptyBrokerList",
    "NoBrokersAvailable",
    "NodeNotReadyError",
    "NotControllerError",
    "NotCoordinatorForGroupError",
    "NotEnoughReplicasAfterAppendError",
    "NotEnoughReplicasError",
    "NotLeaderForPartitionError",
    "OperationNotAttempted",
    "OutOfOrderSequenceNumber",
    "ProducerClosed",
    "QuotaViolationError",
    "ReassignmentInProgress",
    "RebalanceInProgressError",
    "ReplicaNotAvailableError",
    "RequestTimedOutError",
    "StaleControllerEpochError",
    "StaleLeaderEpochCodeError",
    "StaleMetadata",
    "TooManyInFlightRequests",
    "UnknownProducerId",
]
"""A server does not answer, or not yet; or the producer's session is lost, and another one begins (see `sessions`)."""

FENCED = [
    "CommitFailedError",
    "IllegalGenerationError",
    "MemberIdRequired",
    "ProducerFenced",
    "TransactionCoordinatorFenced",
    "UnknownMemberIdError",
]
"""The partition or the position is another's."""

TOO_LARGE = ["MessageSizeTooLargeError", "RecordListTooLargeError"]
TOO_EARLY = ["InvalidTimestampError"]
BAD_RECORD = ["CorruptRecordException"]
"""This one record."""

REJECTED = [
    "AuthenticationFailedError",
    "AuthenticationMethodNotSupported",
    "BrokerResponseError",
    "ClusterAuthorizationFailedError",
    "DelegationTokenAuthDisabled",
    "DelegationTokenAuthorizationFailed",
    "DelegationTokenExpired",
    "DelegationTokenNotFound",
    "DelegationTokenOwnerMismatch",
    "DelegationTokenRequestNotAllowed",
    "GroupAuthorizationFailedError",
    "GroupIdNotFound",
    "IllegalArgumentError",
    "IllegalSaslStateError",
    "IllegalStateError",
    "IncompatibleBrokerVersion",
    "InconsistentGroupProtocolError",
    "InvalidCommitOffsetSizeError",
    "InvalidConfigurationError",
    "InvalidFetchRequestError",
    "InvalidGroupIdError",
    "InvalidPartitionsError",
    "InvalidPrincipalType",
    "InvalidReplicationAssignmentError",
    "InvalidReplicationFactorError",
    "InvalidRequestError",
    "InvalidRequiredAcksError",
    "InvalidSessionTimeoutError",
    "InvalidTopicError",
    "InvalidTransactionTimeout",
    "InvalidTxnState",
    "KafkaConfigurationError",
    "NoError",
    "NoOffsetForPartitionError",
    "NonEmptyGroup",
    "OffsetMetadataTooLargeError",
    "OffsetOutOfRangeError",
    "PolicyViolationError",
    "RecordTooLargeError",
    "SaslAuthenticationFailed",
    "SecurityDisabled",
    "TopicAlreadyExistsError",
    "TopicAuthorizationFailedError",
    "TransactionalIdAuthorizationFailed",
    "UnknownError",
    "UnknownTopicOrPartitionError",
    "UnrecognizedBrokerVersion",
    "UnsupportedCodecError",
    "UnsupportedForMessageFormatError",
    "UnsupportedSaslMechanismError",
    "UnsupportedVersionError",
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

WHOLE_BATCH = (
    library.MessageSizeTooLargeError,
    library.RecordListTooLargeError,
    library.InvalidTimestampError,
    library.UnknownError,  # what the library makes of INVALID_RECORD, which it does not know
)
"""Errors that a broker gives to all records of a batch because of one of them."""


LACKED_RIGHTS: Mapping[type[Exception], str] = {
    library.TopicAuthorizationFailedError: "topic",
    library.GroupAuthorizationFailedError: "group",
    library.ClusterAuthorizationFailedError: "cluster",
}
"""Of what a right is missing."""


def translate(failure: library.KafkaError | OSError, place: str) -> HeadraceError:
    """Our error for one of the client's. `place` says what it is about: an address, a topic, a group.

    A class that this list does not know is retriable if the library calls it so, else refused.
    """
    reason = " ".join(str(failure).split()) or type(failure).__name__
    if isinstance(failure, ssl.SSLCertVerificationError):
        return Rejected(f"{place}: {reason}")
    if isinstance(failure, OSError):
        return Unavailable(f"{place}: no broker answers ({reason})")
    if isinstance(failure, library.UnknownTopicOrPartitionError):
        return Rejected(f"{place}: unknown topic or partition; create it with: python -m app topics create")
    if isinstance(failure, library.KafkaConnectionError | library.NodeNotReadyError):
        return Unavailable(f"{place}: no broker answers ({reason})")
    if type(failure) in LACKED_RIGHTS:
        lacked = f"a right on this {LACKED_RIGHTS[type(failure)]} is missing"
        return Rejected(f"{place}: {lacked}; what each role needs: python -m app topics rights ({reason})")
    kind = _CLASSES.get(type(failure).__name__) or (Unavailable if failure.retriable else Rejected)
    if issubclass(kind, RecordError):
        return kind(reason, topic=place)
    return kind(f"{place}: {reason}")


def translate_code(code: int, message: str | None, place: str) -> HeadraceError | None:
    """What a response's error code says; None for none."""
    kind = library.for_code(code)
    return None if kind is library.NoError else translate(kind(message) if message else kind(), place)


def refused_login(failure: library.KafkaError, security: BrokerSecurity) -> SetupError | None:
    """That a broker refused who we said we are, as the setting to look at; None for any other failure."""
    reason = " ".join(str(failure).split())
    if isinstance(failure, library.UnsupportedSaslMechanismError):
        return SetupError("broker_mechanism", f"{security.mechanism} is not among what the brokers offer")
    if isinstance(failure, library.IllegalSaslStateError):
        return SetupError("broker_user", "must be empty: the brokers ask nobody who he is there")
    if not isinstance(failure, library.AuthenticationFailedError | library.SaslAuthenticationFailed):
        return None
    if "credentials" in reason:
        return SetupError("broker_password", f"the brokers do not know user {security.user} with this password")
    return SetupError("broker_user", f"the brokers refuse {security.user}: {reason}")
