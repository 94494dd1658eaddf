"""What a server counts, for Prometheus. Names begin with ``mogu_``; no label holds anything that a client wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mogu.judge import label_response
from mogu.serve.requests import Engine, Opening

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_SHARES = tuple(n / 10 for n in range(1, 11))
_JUDGED = 600
"""Characters of an answer that the judge reads: whether it refuses is said at its beginning."""


class Metrics:
    """The figures of one server, since its start."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        told: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("mogu_requests", "Requests by endpoint and HTTP status", ["endpoint", "code"], **told)
        self.errors = Counter("mogu_errors", "Requests that were not answered, by error code", ["code"], **told)
        self.answers = Counter("mogu_answers", "Complete answers, by why they ended", ["finish"], **told)
        self.refusals = Counter("mogu_refusals", "Complete answers that the rule judge calls a refusal", **told)
        self.disconnects = Counter("mogu_disconnects", "Requests whose client went away", **told)
        self.prompt_tokens = Counter("mogu_prompt_tokens", "Tokens of prompts that were answered", **told)
        self.completion_tokens = Counter("mogu_completion_tokens", "Tokens of answers", **told)
        self.routed_tokens = Counter("mogu_routed_tokens", "Tokens of answers that the routed model chose", **told)
        self.first = Histogram("mogu_time_to_first_token_seconds", "From arrival", buckets=_SECONDS, **told)
        self.seconds = Histogram("mogu_request_seconds", "Of completions, to the end", buckets=_SECONDS, **told)
        self.risk = Histogram("mogu_risk", "Risk of prompts", buckets=_SHARES, **told)
        self.registry.register(_Loads(engine))
        self._judge = ThreadPoolExecutor(1, thread_name_prefix="mogu-judge")
        self._mean = 1.0

    def opened(self, opening: Opening) -> None:
        """A prompt was read."""
        if opening.risk is not None:
            self.risk.observe(opening.risk)

    def answered(self, instruction: str, text: str, finish: str) -> None:
        """An answer is complete; whether it refuses is judged on another thread."""
        self.answers.labels(finish).inc()
        self._judge.submit(self._count_refusal, instruction, text[:_JUDGED])

    def took(self, seconds: float) -> None:
        """A request for completions was answered."""
        self.seconds.observe(seconds)
        self._mean += 0.1 * (seconds - self._mean)

    def retry_after(self, engine: Engine) -> int:
        """Seconds until a place in the queue is likely: those of one answer, for each row's share of the waiting."""
        load = engine.load()
        return min(max(math.ceil(self._mean * (load.waiting + 1) / max(load.rows, 1)), 1), 60)

    def text(self) -> bytes:
        """In Prometheus' format, with all answers judged that are complete; waits, so not for the event loop."""
        self._judge.submit(int).result()
        return bytes(generate_latest(self.registry))

    def _count_refusal(self, instruction: str, text: str) -> None:
        if label_response(instruction, text) == "refusal":
            self.refusals.inc()


class _Loads(Collector):
    """The engine's own figures, asked for when somebody looks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Gauges of now, counters since the start."""
        load = self._engine.load()
        yield GaugeMetricFamily("mogu_waiting_answers", "Answers that have not begun", load.waiting)
        yield GaugeMetricFamily("mogu_running_answers", "Answers in the making: the batch", load.running)
        yield GaugeMetricFamily("mogu_rows", "Most answers in the making", load.rows)
        yield GaugeMetricFamily("mogu_kv_tokens", "Tokens whose keys and values are held", load.kv_tokens)
        yield GaugeMetricFamily("mogu_kv_limit_tokens", "Most of them", load.kv_limit)
        yield CounterMetricFamily("mogu_generated_tokens", "New tokens, of broken off answers too", load.generated)
        yield CounterMetricFamily("mogu_prefilled_tokens", "Prompt tokens read, re-reads included", load.prefilled)
