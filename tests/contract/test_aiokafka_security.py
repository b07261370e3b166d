"""The adapter over aiokafka against a Kafka that asks everybody who he is."""

import msgspec
import pytest

from app.broker.aiokafka import AioKafkaBroker
from app.core.clock import SystemClock
from app.core.errors import Rejected, SetupError
from app.core.record import TopicPartition
from app.core.security import BrokerSecurity
from tests.contract.conftest import Member
from tests.secure import Secured, elsewhere

pytestmark = pytest.mark.kafka

TOPIC = "raw.orders"
PLACE = TopicPartition(TOPIC, 0)


def broker_of(secured: Secured, address: str = "", **changes: object) -> AioKafkaBroker:
    """As the administrator, but for the changes."""
    variables = secured.variables
    security = BrokerSecurity(
        tls=True,
        ca=variables["HEADRACE_BROKER_CA"],
        user="admin",
        password=(secured.kafka / "admin.password").read_text(),
    )
    security = msgspec.structs.replace(security, **changes)
    return AioKafkaBroker(f"aio{address or variables['HEADRACE_BROKER']}", SystemClock(), security=security)


async def test_password_and_authority_every_client_gets_in(secured: Secured) -> None:
    """TLS and SCRAM reach consumer, producer, reader and admin."""
    broker = broker_of(secured)
    assert TOPIC in await broker.admin().list()
    producer, reader = broker.producer(), broker.reader()
    await producer.start()
    confirmation = await producer.confirm(TOPIC, b"{}", b"k", partition=0)
    assert {PLACE: confirmation.offset + 1} == await reader.end_offsets([PLACE])
    member = Member(broker, "test.aiokafka", [TOPIC])
    await member.consumer.start()
    await member.poll_until(lambda: bool(member.records))
    await member.consumer.close()
    await producer.close()
    await reader.close()
    await broker.close()


async def test_client_certificate_gets_in_and_has_only_its_rights(secured: Secured) -> None:
    """Who shows a certificate needs no password; what it may not see is said to be a missing right, not a missing topic."""
    folder = secured.kafka
    certificate, key = str(folder / "agents.pem"), str(folder / "agents.key")
    broker = broker_of(secured, secured.certificate_address, user="", password="", certificate=certificate, key=key)
    assert 1 == await broker.admin().brokers()
    with pytest.raises(Rejected, match="topics rights"):
        await Member(broker, "test.aiokafka", [TOPIC]).consumer.start()
    await broker.close()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"password": "wr0ng"}, "broker_password: the brokers do not know user admin"),
        ({"user": "nobody"}, "broker_password: the brokers do not know user nobody"),
        ({"mechanism": "PLAIN"}, "broker_mechanism: PLAIN is not among what"),
        ({"ca": "other"}, "broker_ca: the certificate of"),
        ({"tls": False, "ca": ""}, "broker_tls: must be true"),
        ({"user": "", "password": ""}, "broker_user: "),
        ({"address": "elsewhere"}, "broker: the certificate of localhost:"),
    ],
)
async def test_refused_client_names_the_setting(secured: Secured, changes: dict[str, object], complaint: str) -> None:
    """As for the other adapter, in one line without a secret."""
    address = elsewhere(secured.variables["HEADRACE_BROKER"]) if "address" in changes else ""
    settings = {name: value for name, value in changes.items() if name != "address"}
    if settings.get("ca"):
        settings["ca"] = str(secured.redis / "ca.pem")
    broker = broker_of(secured, address, **settings)
    with pytest.raises(SetupError) as refused:
        await broker.producer().start()
    assert str(refused.value).startswith(complaint)
    assert "\n" not in str(refused.value)
    assert [] == [secret for secret in (*secured.secrets(), "wr0ng") if secret in str(refused.value)]
    await broker.close()
