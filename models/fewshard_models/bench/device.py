"""What can be seen on a GPU alone: graphs, launches and peak memory of a peer."""

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fewshard_models.bench.peers import Runner, Skipped
from fewshard_models.bench.problem import Problem


def captured(run: Runner, problem: Problem) -> Runner:
    """`run` as CUDA graphs, one for each copy of the weights. Skipped where it cannot be captured."""
    try:
        graphs = [_capture(run, copy) for copy in range(problem.layer.num_copies)]
    except RuntimeError as error:
        torch.cuda.synchronize()
        raise Skipped(f"cannot be captured: {first_line(error)}") from error

    def replay(index: int) -> Tensor:
        graph, out = graphs[index % len(graphs)]
        graph.replay()
        return out

    return replay


def _capture(run: Runner, index: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(index)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(index)
    return graph, out


def num_launches(run: Runner, device: str) -> int | None:
    """Kernels, copies and fills that one call puts on the GPU; None on a CPU."""
    if device != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run(0)
        torch.cuda.synchronize()
    return sum(1 for event in profiler.events() or () if event.device_type.name == "CUDA")


def peak_bytes(run: Runner, device: str) -> int | None:
    """Memory one call holds at its peak, beside the weights and its input; None on a CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
