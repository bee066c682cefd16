"""For Locust's own command: `locust -f loadtest/fewshard_loadtest/locustfile.py --host URL --model NAME`."""

from typing import Any

from locust import events

from fewshard_loadtest.measure import SCENARIOS, Plan
from fewshard_loadtest.users import ClassifyUser, ImageUser, InferUser, PoissonUser, prepare

__all__ = ["ClassifyUser", "ImageUser", "InferUser", "PoissonUser"]


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """What this file adds to Locust's options; each can be set in the environment too."""
    group = parser.add_argument_group("fewshard")
    group.add_argument("--model", env_var="FEWSHARD_MODEL", required=True, help="the model to ask")
    group.add_argument("--scenario", env_var="FEWSHARD_SCENARIO", choices=SCENARIOS, default="classify")
    group.add_argument("--items", env_var="FEWSHARD_ITEMS", type=int, default=1, help="items a request")
    group.add_argument(
        "--rate",
        env_var="FEWSHARD_RATE",
        type=float,
        default=10.0,
        help="requests per second of each user, open-loop alone",
    )
    group.add_argument("--seed", env_var="FEWSHARD_SEED", type=int, default=0)


@events.init.add_listener
def choose_users(environment: Any, **_: Any) -> None:
    """Keep the scenario's user class alone."""
    options = environment.parsed_options
    plan = Plan("", options.model, options.scenario, num_items=options.items, seed=options.seed)
    environment.user_classes = [prepare(plan, options.rate)]
