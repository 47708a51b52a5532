"""The brokers by name, and which of them goes with which database."""

from chaos.broker import Broker
from chaos.databases import DATABASES
from chaos.rabbitmq_broker import RabbitMQ
from chaos.redis_broker import Redis

BROKERS: dict[str, type[Broker]] = {"redis": Redis, "rabbitmq": RabbitMQ}


def pairs(seed: int, engine: str | None = None, broker: str | None = None) -> list[tuple[str, str]]:
    """The databases that are played on, each with its broker; None for both.

    Of both brokers each is beside one database: an odd seed has PostgreSQL with Redis, an even one with RabbitMQ.
    """
    brokers = list(BROKERS) if seed % 2 else list(reversed(BROKERS))
    beside = dict(zip(DATABASES, brokers, strict=True))
    return [(each, broker or beside.get(each, brokers[0])) for each in ([engine] if engine else DATABASES)]
