"""A Kafka cluster as a `base.Broker`: where its consumers, producers, readers and the admin come from."""

from collections.abc import Sequence

from app.broker.base import RebalanceListener
from app.broker.kafka.admin import KafkaAdmin
from app.broker.kafka.cluster import Cluster
from app.broker.kafka.consumer import KafkaConsumer
from app.broker.kafka.membership import UNNAMED, Membership
from app.broker.kafka.producer import KafkaProducer
from app.broker.kafka.reader import KafkaReader
from app.core.clock import Clock
from app.core.security import OPEN_BROKER, BrokerSecurity


class KafkaBroker:
    """address: `kafka://host:port[,host:port]`. replication: copies of topics made here, fewer on a smaller cluster.
    security: what all its clients are given. membership: how its consumers belong to their groups.

    Raises: SetupError for another form of address; nothing is connected before something is started.
    """

    def __init__(
        self,
        address: str,
        clock: Clock,
        *,
        replication: int = 3,
        security: BrokerSecurity = OPEN_BROKER,
        membership: Membership = UNNAMED,
    ) -> None:
        self.address = address
        self._clock = clock
        self._cluster = Cluster(address, clock, security)
        self._replication = replication
        self._membership = membership

    def consumer(self, group: str, topics: Sequence[str], listener: RebalanceListener) -> KafkaConsumer:
        return KafkaConsumer(self._cluster, group, topics, listener, self._membership)

    def producer(self) -> KafkaProducer:
        return KafkaProducer(self._cluster, self._clock)

    def reader(self) -> KafkaReader:
        return KafkaReader(self._cluster)

    def admin(self) -> KafkaAdmin:
        return KafkaAdmin(self._cluster, self._replication)

    async def close(self) -> None:
        """Ends the admin client; consumers and producers are closed by those who asked for them."""
        await self._cluster.close()
