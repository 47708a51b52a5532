"""Attacks are made on real processes, too."""

from support.real_processes import beat, broker, data, environment, flower, processes, redis_server, worker

__all__ = ["beat", "broker", "data", "environment", "flower", "processes", "redis_server", "worker"]
