"""What the Grafana dashboards show: panels with their queries, as data. `build.py` makes the files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

M = 'model=~"$model"'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """`queries`: PromQL and legend. `kind`: a Grafana panel type, or `matrix`, a heat map of two labels."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    help: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    width: int = 12


def quantile(q: float, metric: str, by: str = "model") -> str:
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{{{M}}}{RATE})))"


def per_model(metric: str, by: str = "model", more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{M}{more}}}{RATE}))"


def gauge(metric: str, how: str = "max", by: str = "model") -> str:
    return f"{how} by ({by}) ({metric}{{{M}}})"


def stage_p95(stage: str) -> str:
    return (
        f"histogram_quantile(0.95, {per_model('fewshard_stage_seconds_bucket', 'le, model', more_of(stage))})"
    )


def more_of(stage: str) -> str:
    return f',stage="{stage}"'


def ratio(part: str, whole: str) -> str:
    return f"{part} / {whole}"


ITEMS = per_model("fewshard_items_total")
BUSY = per_model("fewshard_infer_seconds_total")
ENERGY = per_model("fewshard_energy_joules_total", "model, method")
COST = per_model("fewshard_cost_usd_total")
EXPERTS = per_model("fewshard_expert_tokens_total", "layer, expert")
SHARDS = per_model("fewshard_shard_tokens_total", "model, shard")

SERVICE = [
    Panel("Requests by outcome", [(per_model("fewshard_requests_total", "outcome"), "{{outcome}}")], "reqps"),
    Panel(
        "Latency",
        [(quantile(q, "fewshard_request_seconds"), f"{{{{model}}}} p{q * 100:g}") for q in (0.5, 0.95, 0.99)],
        "s",
        help="From a request's arrival to its answer, refusals included.",
    ),
    Panel("Items", [(ITEMS, "{{model}}")], "short", help="Texts or images a second."),
    Panel(
        "Room used",
        [
            (
                ratio(
                    gauge("fewshard_inflight_items", "sum"), gauge("fewshard_admission_limit_items", "sum")
                ),
                "{{model}}",
            ),
        ],
        "percentunit",
        help="Items in flight over the limit; near 100 % requests are refused.",
    ),
    Panel(
        "Time in each stage, mean",
        [
            (
                ratio(
                    per_model("fewshard_stage_seconds_sum", "stage"),
                    per_model("fewshard_stage_seconds_count", "stage"),
                ),
                "{{stage}}",
            )
        ],
        "s",
    ),
    Panel("Protocols", [(per_model("fewshard_requests_total", "protocol"), "{{protocol}}")], "reqps"),
    Panel(
        "Predicted labels", [(per_model("fewshard_predictions_total", "model, label"), "{{model}} {{label}}")]
    ),
    Panel(
        "Confidence",
        [(per_model("fewshard_confidence_bucket", "le"), "{{le}}")],
        kind="heatmap",
        help="Best score of each item.",
    ),
    Panel(
        "Distance from the card",
        [
            (gauge("fewshard_label_drift_ratio", "max", "model"), "{{model}} labels"),
            (gauge("fewshard_confidence_drift_ratio", "max", "model"), "{{model}} confidence"),
        ],
        "percentunit",
        help="Above 20 % for half an hour an alert fires.",
    ),
    Panel(
        "Agreement with the shadow",
        [
            (
                ratio(
                    per_model("fewshard_shadow_items_total", "model, shadow", ',outcome="agree"'),
                    per_model("fewshard_shadow_items_total", "model, shadow", ',outcome=~"agree|disagree"'),
                ),
                "{{model}} and {{shadow}}",
            )
        ],
        "percentunit",
    ),
    Panel(
        "Canary",
        [
            (gauge("fewshard_canary_weight_ratio", "max", "model, version"), "{{model}} {{version}}"),
            (
                ratio(
                    per_model("fewshard_canary_requests_total", "model, version", ',outcome=~"flip|failed"'),
                    per_model("fewshard_canary_requests_total", "model, version", ',outcome!="skipped"'),
                ),
                "{{model}} {{version}} answers otherwise",
            ),
            (
                per_model("fewshard_canary_steps_total", "model, version", ',step="rolled_back"'),
                "{{model}} {{version}} given up, a second",
            ),
        ],
        "percentunit",
        help="The new version's part of the requests, and the part of the compared ones that it changes.",
    ),
]

BATCHING = [
    Panel(
        "Items of a batch",
        [
            (
                ratio(per_model("fewshard_batch_items_sum"), per_model("fewshard_batch_items_count")),
                "{{model}} mean",
            ),
            (quantile(0.9, "fewshard_batch_items"), "{{model}} p90"),
        ],
    ),
    Panel(
        "Tokens of a batch",
        [
            (
                ratio(per_model("fewshard_batch_tokens_sum"), per_model("fewshard_batch_tokens_count")),
                "{{model}} mean",
            ),
            (quantile(0.9, "fewshard_batch_tokens"), "{{model}} p90"),
        ],
    ),
    Panel("Batches", [(per_model("fewshard_batch_items_count"), "{{model}}")], "ops"),
    Panel(
        "Padding",
        [
            (
                ratio(
                    per_model("fewshard_tokens_total", "model", ',state="padding"'),
                    per_model("fewshard_tokens_total", "model"),
                ),
                "{{model}}",
            )
        ],
        "percentunit",
        help="Share of the computed tokens that are padding.",
    ),
    Panel("Items that wait", [(gauge("fewshard_queue_items", "sum", "model"), "{{model}}")]),
    Panel(
        "Runner's time",
        [(per_model("fewshard_infer_seconds_total", "model, replica"), "{{model}} {{replica}}")],
        "percentunit",
        help="Share of the time in forward passes; models of one host share one runner.",
    ),
    Panel("Queue, p95", [(stage_p95("queue"), "{{model}}")], "s"),
    Panel("Forward pass, p95", [(stage_p95("infer"), "{{model}}")], "s"),
    Panel(
        "Admission limit",
        [(gauge("fewshard_admission_limit_items", "sum", "model"), "{{model}}")],
        help="It falls when work waits longer than queue_ms.",
    ),
]

EXPERTS_PANELS = [
    Panel(
        "Tokens a second, layer by expert",
        [(EXPERTS, "")],
        kind="matrix",
        width=24,
        options={"row": "layer", "column": "expert"},
    ),
    Panel(
        "Busiest expert over the mean",
        [(gauge("fewshard_expert_imbalance_ratio", "max", "model, layer"), "{{model}} layer {{layer}}")],
    ),
    Panel(
        "Largest share of an expert, worst layers",
        [(gauge("fewshard_expert_share_ratio", "max", "model, layer"), "{{model}} layer {{layer}}")],
        "percentunit",
        help="Of models with too many experts for a counter each.",
    ),
    Panel(
        "Experts in effective use",
        [(gauge("fewshard_expert_use_ratio", "min", "model, layer"), "{{model}} layer {{layer}}")],
        "percentunit",
        help="Perplexity of the load over the number of experts: 100 % is even.",
    ),
    Panel(
        "Router's entropy",
        [(gauge("fewshard_router_entropy_ratio", "avg", "model, layer"), "{{model}} layer {{layer}}")],
        "percentunit",
        help="How undecided the router is about one token; low is sure.",
    ),
    Panel(
        "Dead experts",
        [(gauge("fewshard_dead_experts", "min", "model, layer"), "{{model}} layer {{layer}}")],
    ),
    Panel("Shards against their load", [(SHARDS, "{{model}} shard {{shard}}")], kind="barchart"),
    Panel(
        "Busiest shard over the mean",
        [(f"max by (model) ({SHARDS}) / avg by (model) ({SHARDS})", "{{model}}")],
        help="All shards wait for the busiest.",
    ),
    Panel(
        "Units near zero",
        [(gauge("fewshard_activation_sparsity_ratio", "avg", "model, layer"), "{{model}} layer {{layer}}")],
        "percentunit",
        help="Share of a layer's feed-forward units near zero on sampled items (diagnostics).",
    ),
    Panel("Experts loaded by shards", [(per_model("fewshard_placement_moves_total"), "{{model}}")], "ops"),
]

RIVALS = [
    Panel("Latency, p95", [(quantile(0.95, "fewshard_request_seconds"), "{{model}}")], "s"),
    Panel("Throughput", [(ITEMS, "{{model}}")], help="Items a second, as the load asks for."),
    Panel(
        "Device time of an item",
        [(ratio(BUSY, ITEMS), "{{model}}")],
        "s",
        help="Forward passes alone: what a sparse model should save.",
    ),
    Panel(
        "Items a second at full use",
        [(ratio(ITEMS, BUSY), "{{model}}")],
        help="Items over the time in forward passes: what one replica could do at these batches.",
    ),
    Panel(
        "Price of a million items",
        [(f"1e6 * {COST} / {ITEMS}", "{{model}}")],
        "currencyUSD",
        help="Needs cost.usd_per_hour. Idle time is not in it.",
    ),
    Panel(
        "Energy of a thousand items",
        [(f"1e3 * {ENERGY} / on (model) group_left () {ITEMS}", "{{model}}, {{method}}")],
        "joule",
        help="Measured by the GPU, or modelled as watts times the time in forward passes.",
    ),
    Panel(
        "Accuracy by the card",
        [(gauge("fewshard_model_accuracy_ratio", "max", "model"), "{{model}}")],
        "percentunit",
        "bargauge",
        width=8,
    ),
    Panel(
        "Multiply-accumulates of an item",
        [(gauge("fewshard_model_macs", "max", "model"), "{{model}}")],
        kind="bargauge",
        width=8,
    ),
    Panel(
        "Parameters, total and active",
        [(gauge("fewshard_model_parameters", "max", "model, state"), "{{model}} {{state}}")],
        kind="bargauge",
        width=8,
    ),
    Panel(
        "Realised multiply-accumulates a second",
        [(f"{gauge('fewshard_model_macs')} * on (model) {ITEMS} / {BUSY}", "{{model}}")],
        help="Of two models with the same line, the one with fewer MACs is as much faster.",
    ),
    Panel(
        "Cascades: items by the stage that spoke",
        [(per_model("fewshard_cascade_items_total", "model, stage"), "{{model}} {{stage}}")],
    ),
    Panel(
        "Cascades: MACs spent over the last stage alone",
        [
            (
                ratio(
                    per_model("fewshard_cascade_macs_total", "model", ',of="spent"'),
                    per_model("fewshard_cascade_macs_total", "model", ',of="last_stage_alone"'),
                ),
                "{{model}}",
            )
        ],
        "percentunit",
    ),
    Panel("What is served", [(f"fewshard_model_info{{{M}}}", "")], kind="table", width=24),
]

CLUSTER = [
    Panel(
        "Replicas that answer",
        [
            ("sum by (application) (fewshard_replica_up)", "{{application}}"),
            ("max by (application) (fewshard_replicas_wanted)", "{{application}} wanted"),
        ],
    ),
    Panel(
        "Silent replicas",
        [("count by (application) (fewshard_replica_up == 0) or vector(0)", "{{application}}")],
    ),
    Panel("Replicas ready", [(gauge("fewshard_model_ready", "sum", "model"), "{{model}}")]),
    Panel(
        "CPU",
        [(f"rate(fewshard_process_cpu_seconds_total{RATE})", "{{application}} {{replica}}")],
        help="Of the replica's own process; shards elsewhere are not in it.",
    ),
    Panel("Memory", [("fewshard_process_resident_bytes", "{{application}} {{replica}}")], "bytes"),
    Panel("Free disk", [("min by (instance) (fewshard_disk_free_bytes)", "{{instance}}")], "bytes"),
    Panel(
        "Shards at work",
        [
            (gauge("fewshard_group_size", "min", "model"), "{{model}}"),
            (gauge("fewshard_group_shards", "max", "model"), "{{model}} wanted"),
        ],
    ),
    Panel(
        "Groups re-formed",
        [(f"sum by (model) (increase(fewshard_group_reforms_total{{{M}}}{RATE}))", "{{model}}")],
    ),
    Panel("Degraded groups", [(gauge("fewshard_group_degraded", "sum", "model"), "{{model}}")]),
    Panel(
        "Requests by replica",
        [(per_model("fewshard_requests_total", "application, replica"), "{{application}} {{replica}}")],
        "reqps",
    ),
    Panel(
        "Versions",
        [("count by (version, python) (fewshard_build_info)", "{{version}}, Python {{python}}")],
        kind="bargauge",
    ),
    Panel(
        "Alerts that fire",
        [('ALERTS{alertname=~"Fewshard.*",alertstate="firing"} or vector(0)', "")],
        kind="table",
    ),
]

DASHBOARDS = {
    "service": ("Fewshard: service", SERVICE),
    "batching": ("Fewshard: batching", BATCHING),
    "experts": ("Fewshard: experts", EXPERTS_PANELS),
    "dense-against-sparse": ("Fewshard: dense against sparse", RIVALS),
    "cluster": ("Fewshard: cluster", CLUSTER),
}
