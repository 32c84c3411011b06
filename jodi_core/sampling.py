"""Time grid, solvers and guidance for rectified flow (spec 5). A solver knows nothing of roles, models or hosts.

x is any float tensor; time t runs from 1 (noise) to 0 (data) with x_t = (1 - t) data + t noise, and
velocity(x, t) returns noise - data, t a scalar tensor. A callback(step, steps, x, x0) is called after each model
evaluation with the number of finished evaluations; it stops the run by raising. keep(x, t) returns what a state at
time t becomes before it is looked at again, such as one with known parts put back.
"""

from collections.abc import Callable
from math import expm1, inf, log

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, int, Tensor, Tensor], None]
Keep = Callable[[Tensor, float], Tensor]


def flow_timesteps(steps: int, shift: float = 3.0) -> Tensor:
    """(steps + 1,) float64 times, descending to 0; the first is 0.9997 for shift 3 (equation 5.2)."""
    if steps < 1 or shift <= 0:
        raise ValueError(f"steps {steps} must be at least 1 and shift {shift} above 0")
    s = 1 - torch.linspace(1, 0.001, steps + 1, dtype=torch.float64)
    return (shift * s / (1 + (shift - 1) * s)).flip(0)


def _log_snr(t: float) -> float:
    if 0 < t < 1:
        return log(1 - t) - log(t)
    return inf if t <= 0 else -inf


def sample_flow_dpm(velocity: Velocity, x: Tensor, timesteps: Tensor, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2M) for flow: first and last update first order (equations 5.1 to 5.10). State float32."""
    x = x.float()
    times = timesteps.tolist()
    steps, previous = len(times) - 1, None
    for i, (t, t_next) in enumerate(zip(times, times[1:])):
        x0 = x - t * velocity(x, timesteps[i]).float()
        if callback:
            callback(i + 1, steps, x, x0)
        h = _log_snr(t_next) - _log_snr(t)
        direction = x0
        if 0 < i < steps - 1:
            r = (_log_snr(t) - _log_snr(times[i - 1])) / h
            direction = x0 + (x0 - previous) / (2 * r)
        x = (t_next / t) * x - (1 - t_next) * expm1(-h) * direction
        previous = x0
    return x


def sample_flow_euler(velocity: Velocity, x: Tensor, timesteps: Tensor, callback: Callback | None = None,
                      keep: Keep | None = None) -> Tensor:
    """Euler steps along the flow, or any other straight path on which x0 = x - t velocity. State float32."""
    x = x.float()
    times = timesteps.tolist()
    for i, (t, t_next) in enumerate(zip(times, times[1:])):
        v = velocity(x, timesteps[i]).float()
        if callback:
            callback(i + 1, len(times) - 1, x, x - t * v)
        x = x + (t_next - t) * v
        if keep:
            x = keep(x, t_next)
    return x


def guided(branches: Velocity, guidance: float, rescale: float = 0.0) -> Velocity:
    """Classifier-free guidance: `branches` returns (2B, ...) velocities, unconditional rows first (equation 5.5).

    rescale: share (0 to 1) of a result with the standard deviation that each conditional row has (arXiv 2305.08891).
    """
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        unconditional, conditional = branches(x, t).float().chunk(2)
        result = unconditional + guidance * (conditional - unconditional)
        if rescale:
            wanted, spread = (rows.flatten(1).std(dim=1) for rows in (conditional, result))
            result = result * (rescale * wanted / spread + 1 - rescale).view(-1, *[1] * (x.ndim - 1))
        return result
    return velocity
