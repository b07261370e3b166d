"""From addresses in the settings to the adapters behind them; for stores see `serving.stores`. Each is imported only when its address asks for it."""

from collections.abc import Callable, Mapping

from app.broker.base import Broker
from app.core.clock import Clock
from app.core.errors import SetupError
from app.core.settings import Settings
from app.decisions.decision import Decision
from app.models.base import Model


def open_broker(settings: Settings, clock: Clock) -> Broker:
    """`kafka://host:port,…`, the same through aiokafka as `aiokafka://host:port,…`, or `memory://` for one that lives in
    this process."""
    if settings.broker.startswith("memory://"):
        from app.broker.memory import MemoryBroker

        return MemoryBroker(clock)
    security = settings.broker_security
    if settings.broker.startswith("aiokafka://"):
        from app.broker.aiokafka import AioKafkaBroker

        return AioKafkaBroker(settings.broker, clock, replication=settings.replication, security=security)
    from app.broker.kafka import KafkaBroker
    from app.broker.kafka.membership import Membership

    membership = Membership(settings.group_protocol, settings.instance)
    replication = settings.replication
    return KafkaBroker(settings.broker, clock, replication=replication, security=security, membership=membership)


def open_model(
    settings: Settings, rules: Mapping[str, Callable[..., Decision]], environment: Mapping[str, str]
) -> Model:
    """`rules` answers offline; every other name is a model of Anthropic's.

    Raises: SetupError when the key is missing.
    """
    if settings.model == "rules":
        from app.models.rules import RulesModel

        return RulesModel(rules)
    from app.models.anthropic import AnthropicModel

    key = environment.get("ANTHROPIC_API_KEY", "")
    if not key:
        raise SetupError("ANTHROPIC_API_KEY", f"is not set; {settings.model} needs it, --model rules does not")
    return AnthropicModel(settings.model, api_key=key, address=settings.model_url)
