"""A Kafka cluster through aiokafka as a `base.Broker`: where its consumers, producers, readers and the admin come from."""

from collections.abc import Sequence

from app.broker.aiokafka.admin import AioKafkaAdmin
from app.broker.aiokafka.cluster import Cluster
from app.broker.aiokafka.consumer import AioKafkaConsumer
from app.broker.aiokafka.producer import AioKafkaProducer
from app.broker.aiokafka.reader import AioKafkaReader
from app.broker.base import RebalanceListener
from app.core.clock import Clock
from app.core.security import OPEN_BROKER, BrokerSecurity


class AioKafkaBroker:
    """address: `aiokafka://host:port[,host:port]`. replication: copies of topics made here, fewer on a smaller cluster.
    security: what all its clients are given. Belongs to one event loop.

    Raises: SetupError for another form of address, or certificates that cannot be used; nothing is connected before
    something is started.
    """

    def __init__(
        self, address: str, clock: Clock, *, replication: int = 3, security: BrokerSecurity = OPEN_BROKER
    ) -> None:
        self.address = address
        self._clock = clock
        self._cluster = Cluster(address, security)
        self._replication = replication

    def consumer(self, group: str, topics: Sequence[str], listener: RebalanceListener) -> AioKafkaConsumer:
        return AioKafkaConsumer(self._cluster, group, topics, listener)

    def producer(self) -> AioKafkaProducer:
        return AioKafkaProducer(self._cluster, self._clock)

    def reader(self) -> AioKafkaReader:
        return AioKafkaReader(self._cluster)

    def admin(self) -> AioKafkaAdmin:
        return AioKafkaAdmin(self._cluster, self._replication)

    async def close(self) -> None:
        """Ends the clients that all share; consumers and producers are closed by those who asked for them."""
        await self._cluster.close()
