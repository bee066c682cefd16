"""Entry point for Locust: `locust -f loadtest/fewshard_loadtest/locustfile.py --host URL --model NAME`.

Users, spawn rate and host are set on the web page as usual; `--master` and `--worker` distribute the load.
"""

from typing import Any

from locust import events

from fewshard_loadtest.measure import Plan
from fewshard_loadtest.protocols import PROTOCOLS
from fewshard_loadtest.users import GrpcPoissonUser, GrpcUser, HttpUser, PoissonUser, prepare

__all__ = ["GrpcPoissonUser", "GrpcUser", "HttpUser", "PoissonUser"]


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add this file's options to Locust's; each can be set in the environment too."""
    group = parser.add_argument_group("fewshard")
    group.add_argument("--model", env_var="FEWSHARD_MODEL", required=True, help="the model to ask")
    group.add_argument("--protocol", env_var="FEWSHARD_PROTOCOL", choices=[*PROTOCOLS], default="classify")
    group.add_argument(
        "--payload",
        env_var="FEWSHARD_PAYLOAD",
        default="texts",
        help="texts, images, sst2, cifar10 or a file",
    )
    group.add_argument("--items", env_var="FEWSHARD_ITEMS", type=int, default=1, help="items a request")
    group.add_argument(
        "--rate",
        env_var="FEWSHARD_RATE",
        type=float,
        default=None,
        help="requests per second of each user: an open loop (default: a closed one)",
    )
    group.add_argument("--seed", env_var="FEWSHARD_SEED", type=int, default=0)


@events.init.add_listener
def choose_users(environment: Any, **_: Any) -> None:
    """Keep only the user class for the chosen protocol and loop type."""
    options = environment.parsed_options
    plan = Plan(
        "",
        options.model,
        protocol=options.protocol,
        payload=options.payload,
        rate=options.rate,
        num_items=options.items,
        seed=options.seed,
    )
    environment.user_classes = [prepare(plan, options.rate)]
