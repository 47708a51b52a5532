"""Attacks are made on real processes, too."""

from support.real_processes import broker, data, environment, processes, redis_server, worker

__all__ = ["broker", "data", "environment", "processes", "redis_server", "worker"]
