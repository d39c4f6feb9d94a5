"""Metrics for Prometheus: base units, counters that end in `_total`, labels with few values.

The model label is a served name, never a client's text; requests for unknown names have an empty one.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric

from lifecycle.serving.choices import Served
from lifecycle.serving.record import FinishedRequest

LATENCY_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
LABELS = ("route", "model", "version")


class Metrics:
    """Counts finished requests; reads the engines' state when asked."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self._models = models
        self._registry = CollectorRegistry()
        r = self._registry
        self._requests = Counter(
            "lifecycle_requests_total", "Finished requests.", [*LABELS, "status", "finish_reason"], registry=r
        )
        self._prompt = Counter("lifecycle_prompt_tokens_total", "Tokens of prompts.", LABELS, registry=r)
        self._completion = Counter("lifecycle_completion_tokens_total", "Tokens generated.", LABELS, registry=r)
        self._latency = Histogram(
            "lifecycle_request_duration_seconds", "From arrival to the last byte.", LABELS, buckets=LATENCY_S,
            registry=r,
        )  # fmt: skip
        self._first = Histogram(
            "lifecycle_time_to_first_token_seconds", "From arrival to the first text.", LABELS, buckets=LATENCY_S,
            registry=r,
        )  # fmt: skip
        r.register(self)

    def observe(self, request: FinishedRequest) -> None:
        """Counts a finished request; tokens and times only of those that were answered."""
        labels = (request.route, request.model, request.version)
        self._requests.labels(*labels, str(request.status), request.finish_reason or "").inc()
        if request.status != 200:
            return
        self._prompt.labels(*labels).inc(request.prompt_tokens)
        self._completion.labels(*labels).inc(request.completion_tokens)
        self._latency.labels(*labels).observe(request.latency_s)
        if request.first_token_s is not None:
            self._first.labels(*labels).observe(request.first_token_s)

    def collect(self) -> list[Metric]:
        """The engines' gauges and counters: called by the client library."""
        names = ["model", "version"]
        waiting = GaugeMetricFamily("lifecycle_queue_depth", "Requests that wait for a slot.", labels=names)
        active = GaugeMetricFamily("lifecycle_active_slots", "Slots with a request.", labels=names)
        slots = GaugeMetricFamily("lifecycle_slots", "Slots of the engine.", labels=names)
        steps = CounterMetricFamily("lifecycle_decode_steps_total", "Decode steps of the engine.", labels=names)
        drafts = CounterMetricFamily("lifecycle_draft_tokens_total", "Drafts that steps verified.", labels=names)
        accepted = CounterMetricFamily("lifecycle_accepted_draft_tokens_total", "Of these, accepted.", labels=names)
        cached = CounterMetricFamily(
            "lifecycle_cached_prompt_tokens_total", "Tokens of prompts that were in the cache.", labels=names
        )
        not_finite = CounterMetricFamily(
            "lifecycle_not_finite_total", "Requests that failed by numbers that are not finite.", labels=names
        )
        given_up = CounterMetricFamily(
            "lifecycle_given_up_total", "Times that a request began again for want of cache.", labels=names
        )
        pages = GaugeMetricFamily("lifecycle_cache_pages", "Pages of the KV cache.", labels=[*names, "state"])
        held = GaugeMetricFamily("lifecycle_cache_bytes", "Memory of the KV cache, of all devices.", labels=names)
        engines = {id(served.engine): (name, served) for name, served in reversed(list(self._models.items()))}
        for name, served in engines.values():  # an engine with several names counts once, under the first
            stats, labels = served.engine.stats, [name, served.version]
            waiting.add_metric(labels, stats.waiting)
            active.add_metric(labels, stats.active)
            slots.add_metric(labels, served.engine.num_slots)
            steps.add_metric(labels, stats.decode_steps)
            drafts.add_metric(labels, stats.draft_tokens)
            accepted.add_metric(labels, stats.accepted_tokens)
            cached.add_metric(labels, stats.cached_tokens)
            not_finite.add_metric(labels, stats.not_finite)
            given_up.add_metric(labels, stats.given_up)
            held.add_metric(labels, stats.cache_bytes)
            for state, number in stats.pages.items():
                pages.add_metric([*labels, state], number)
        return [waiting, active, slots, steps, drafts, accepted, cached, not_finite, given_up, pages, held]

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)
