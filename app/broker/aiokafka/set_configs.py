"""Changes single settings of a topic, a request that aiokafka lacks: its own replaces all of them, and what another had set
is lost.

Source: Kafka's IncrementalAlterConfigsRequest.json, version 0; its answer is that of AlterConfigs.
"""

from collections.abc import Mapping
from typing import Any

from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.protocol.admin import AlterConfigsResponse_v0
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int8, Schema, String

API = 44
SET = 0


class _Answer(Response):  # type: ignore[misc]  # the library has no types
    API_KEY = API
    API_VERSION = 0
    SCHEMA = AlterConfigsResponse_v0.SCHEMA


class _SetConfigs(RequestStruct):  # type: ignore[misc]
    API_KEY = API
    API_VERSION = 0
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                (
                    "configs",
                    Array(("name", String("utf-8")), ("operation", Int8), ("value", String("utf-8"))),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


class SetConfigs(Request[_SetConfigs]):  # type: ignore[misc]
    """Sets these settings of a topic and leaves its others."""

    API_KEY = API

    def __init__(self, topic: str, config: Mapping[str, str]) -> None:
        changes = [(name, SET, value) for name, value in config.items()]
        self._resources = [(int(ConfigResourceType.TOPIC), topic, changes)]

    def build(self, request_struct_class: type[_SetConfigs]) -> Any:
        return request_struct_class(self._resources, False)
