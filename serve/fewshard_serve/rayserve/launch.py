"""Deploys all applications, reports readiness, and drains on a signal; called by `fewshard serve`."""

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fewshard_serve.auth import hash_of, new_token
from fewshard_serve.config import FewshardConfig, ServerConfig
from fewshard_serve.cpu_threads import num_threads
from fewshard_serve.errors import StartError
from fewshard_serve.http.middleware import AccessSettings
from fewshard_serve.logs import keep_lines_whole
from fewshard_serve.rayserve.actor_process import RAY_LOGGING, own_stderr
from fewshard_serve.rayserve.cluster import ray_cluster
from fewshard_serve.rayserve.deployment_plan import (
    DEFAULT_LOADER,
    GATEWAY_APP,
    AppSpec,
    CascadeSpec,
    HostSpec,
    check_front,
    door_settings,
    front_settings,
    plan_cascades,
    plan_hosts,
)
from fewshard_serve.rayserve.environment import prepare_environment
from fewshard_serve.rayserve.haproxy import stop_softly, write_settings
from fewshard_serve.rayserve.preflight import check_files, check_space, ports_held, why_no_folder
from fewshard_serve.rayserve.resource_shares import num_cpus_wanted, share_cores, share_gpus
from fewshard_serve.rayserve.rolling_update import Updater, serve_and_update
from fewshard_serve.rayserve.run_folder import clear, clear_dead_runs, members, name_of, run_folder
from fewshard_serve.rayserve.running import Running
from fewshard_serve.rayserve.serve_deployer import ServeDeployer
from fewshard_serve.rayserve.signals import LoopThread, StopRequest, stop_request
from fewshard_serve.rayserve.supervisor import Supervisor

LOOPBACK = "127.0.0.1"
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""What there is where torch may find a GPU: NVIDIA's driver, the same in WSL, AMD's driver."""
POLL_S = 0.1
SHUTDOWN_S = 5.0
"""Time for Ray to end its processes by itself, once all requests are answered."""
LAST_BYTES_S = 0.5
"""Time for HAProxy to forward answers that are already written, and to refuse other requests."""


def serve_until_signalled(
    config: FewshardConfig,
    *,
    address: str | None = None,
    on_ready: Callable[[], None],
    loader: str = DEFAULT_LOADER,
    read_again: Callable[[], FewshardConfig] | None = None,
) -> int:
    """Serve until Ctrl-C or SIGTERM, then answer all accepted requests. Return the exit code.

    on_ready: called once every model answers over HTTP.
    read_again: returns the configuration to apply on SIGHUP; None applies the same one again.

    Raises `StartError` if the port is in use, Ray cannot start, or a model cannot be loaded. Ends the whole
    process, with a line that says why, if the server cannot heal or does not stop in time.
    """
    keep_lines_whole()
    with ExitStack() as stack:
        folder = stack.enter_context(_own_machine(config.server)) if address is None else None
        stop = stack.enter_context(stop_request())
        supervisor = Supervisor(
            stop,
            clean_up=lambda: None if folder is None else clear(folder),
            let_finish=lambda: None if folder is None else _close_softly(folder),
        )
        run = _Run(config, address, folder, loader, supervisor, stop)
        return supervisor.run(lambda: run.serve(on_ready, read_again or (lambda: config)))


@contextmanager
def _own_machine(server: ServerConfig) -> Iterator[str]:
    """Make a folder for the run and hold its ports, where there is room for them. Raises `StartError`."""
    clear_dead_runs()
    with ExitStack() as stack:
        stack.enter_context(ports_held(server))
        try:
            folder = stack.enter_context(run_folder())
            check_space(folder)
        except OSError as error:
            raise StartError(why_no_folder(error)) from error
        yield folder


@dataclass(frozen=True, slots=True)
class _Run:
    """One server from its start to its end, in the thread of `supervisor`.

    address: the Ray to join; None if one is started here.
    folder: the folder of the run; None if Ray is joined.
    """

    config: FewshardConfig
    address: str | None
    folder: str | None
    loader: str
    supervisor: Supervisor
    stop: StopRequest

    def serve(self, on_ready: Callable[[], None], read_again: Callable[[], FewshardConfig]) -> int:
        """Serve until a stop is requested, answer what was accepted, and return the exit code."""
        owns_ray = self.address is None
        has_own_haproxy = prepare_environment(self.folder, front_settings(self.config))
        check_front(self.config.server, has_own_haproxy)
        if has_own_haproxy:
            check_files()
        log_path = own_stderr() if owns_ray else ""
        token = new_token()
        doors = door_settings(self.config, log_path, has_own_haproxy, hash_of(token).hex())

        def plan(wanted: FewshardConfig) -> list[HostSpec]:
            if self.folder is not None and has_own_haproxy:  # it is started again when replicas change
                write_settings(self.folder, front_settings(wanted), os.getpid())
            planned = plan_hosts(wanted, self.loader, doors)
            return [replace(host, starts_dir=self.folder or "") for host in planned]

        hosts = plan(self.config)
        cascades = plan_cascades(self.config, hosts)
        with ExitStack() as stack:
            stack.enter_context(_early_process(hosts))
            num_cpus = num_cpus_wanted([*hosts, *cascades])
            # Replicas print to our stderr themselves where they can. Shards, which run in actors, do not.
            forwards_output = not log_path or any(host.experts for host in hosts)
            cluster = ray_cluster(self.address, num_cpus, forwards_output)
            self.supervisor.vital = stack.enter_context(cluster)
            deployed = _deployed(hosts, cascades, doors, self.config.server, self.supervisor, owns_ray, token)
            running = stack.enter_context(deployed)
            if running.wait_until_ready(self.stop):
                self.supervisor.owes_answers = True
                self.supervisor.stop_limit_s = running.stop_limit_s
                on_ready()
                running.meet_all()
                self._until_stopped(running, lambda wanted: _for_cluster(plan(wanted), owns_ray), read_again)
                running.drain()
                self._close_doors()
        return 0

    def _until_stopped(
        self,
        running: Running,
        plan: Callable[[FewshardConfig], list[HostSpec]],
        read_again: Callable[[], FewshardConfig],
    ) -> None:
        def plan_all(wanted: FewshardConfig) -> list[AppSpec]:
            hosts = plan(wanted)
            return [*hosts, *plan_cascades(wanted, hosts)]

        def show(apps: Sequence[AppSpec], unloaded: Collection[str]) -> None:
            running.show(apps, unloaded)
            self.supervisor.stop_limit_s = running.stop_limit_s

        deployer = ServeDeployer(running.calls, self.supervisor.fail)
        updater = Updater(
            self.config, running.apps, plan_all, deployer, lambda: self.stop.is_asked, running.index, show
        )
        with running.listening() as changes:
            serve_and_update(self.stop, updater, deployer, read_again, changes)

    def _close_doors(self) -> None:
        if self.folder is not None:
            stop_softly(self.folder)
            time.sleep(LAST_BYTES_S)
        supervisor = self.supervisor
        supervisor.owes_answers = False
        supervisor.stop_limit_s = min(supervisor.stop_limit_s, self.stop.asked_for_s + SHUTDOWN_S)


def _close_softly(folder: str) -> None:
    """Accept no more connections, and return when those that there are have ended."""
    stop_softly(folder)
    while any("haproxy" in name_of(pid) for pid in members(folder)):
        time.sleep(POLL_S)


def _early_process(hosts: list[HostSpec]) -> AbstractContextManager[None]:
    """Start the models' process of the first host before Ray, if its one replica will be on this machine."""
    from fewshard_serve.backends.early_process import early_process, socket_path
    from fewshard_serve.backends.process import environment

    host, *_ = share_cores(hosts, num_nodes=1)
    is_alone = host.max_replicas == 1 and host.experts is None and host.loader == DEFAULT_LOADER
    # Ray decides which GPUs a replica sees, and its models' process with it.
    is_on_cpu = not host.may_use_gpu or not any(Path(each).exists() for each in GPU_DEVICES)
    path = socket_path(host.starts_dir, host.app) if is_alone and is_on_cpu else ""
    return early_process(path, environment(num_threads(host.num_neighbours)))


def _for_cluster(hosts: list[HostSpec], owns_ray: bool) -> list[HostSpec]:
    """Complete the hosts with the values that depend on the cluster."""
    import ray

    hosts = share_gpus(hosts, ray.cluster_resources().get("GPU", 0))
    hosts = share_cores(hosts, sum(node["Alive"] for node in ray.nodes()))
    return [replace(host, is_on_one_machine=owns_ray) for host in hosts]


@contextmanager
def _deployed(
    hosts: list[HostSpec],
    cascades: list[CascadeSpec],
    doors: AccessSettings,
    server: ServerConfig,
    supervisor: Supervisor,
    owns_ray: bool,
    token: str,
) -> Iterator[Running]:
    """Deploy all applications. On exit remove them, if Ray is not ours."""
    from ray import serve

    from fewshard_serve.rayserve.deployment import host_application
    from fewshard_serve.rayserve.gateway import gateway_application

    hosts = _for_cluster(hosts, owns_ray)
    _start_serve(server, owns_ray, doors.is_behind_haproxy)
    apps: list[AppSpec] = [*hosts, *cascades]
    targets = [serve.RunTarget(host_application(app), app.app, app.route_prefix) for app in apps]
    targets.append(serve.RunTarget(gateway_application(apps, doors, server), GATEWAY_APP, "/"))
    handles = serve.run_many(
        targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
    )

    with LoopThread() as loop:
        running = Running(apps, handles, loop, server if owns_ray else None, token)

        def remove() -> None:
            for name in [*(app.app for app in running.apps), GATEWAY_APP]:
                serve.delete(name, _blocking=False)

        if not owns_ray:
            supervisor.clean_up = remove
        try:
            yield running
        finally:
            if not owns_ray:
                remove()


def _start_serve(server: ServerConfig, owns_ray: bool, has_own_haproxy: bool) -> None:
    """Start Serve. Replicas listen on its host, too: the loopback, where our HAProxy has one of its own."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(
            proxy_location="HeadOnly" if owns_ray else "EveryNode",
            http_options={"host": LOOPBACK if has_own_haproxy else server.host, "port": server.port},
            logging_config=RAY_LOGGING,
        )
    except Exception as error:
        raise StartError(f"Ray Serve cannot start: {error}") from error
