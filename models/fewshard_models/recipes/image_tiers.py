"""How large the CIFAR-10 networks of each tier are, and how long they train; read by the recipes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageTier:
    """`stage_channels` and `block_channels` of the dense network; `epochs` from scratch, `static_epochs` of
    fine-tuning after pruning; shifts of up to `max_shift` pixels, a square of `cutout` pixels hidden;
    `static_share` and `dynamic_share`: MACs left, of the dense; `density`: weights RigL keeps, of the dense.
    """

    name: str
    stage_channels: tuple[int, ...]
    block_channels: tuple[int, ...]
    epochs: int
    static_epochs: int
    batch_size: int = 512
    learning_rate: float = 0.4
    static_learning_rate: float = 0.1
    max_shift: int = 2
    cutout: int = 0
    ema_decay: float = 0.99
    static_share: float = 0.5
    dynamic_share: float = 0.4
    density: float = 0.4
    round_to: int = 16


TINY = ImageTier("tiny", (64, 192, 256), (64, 128, 128), epochs=12, static_epochs=6)
SMALL = ImageTier(
    "small",
    (64, 256, 256),
    (64, 256, 256),
    epochs=40,
    static_epochs=20,
    max_shift=4,
    cutout=8,
    ema_decay=0.995,
)
PAPER = ImageTier(
    "paper",
    (128, 512, 512),
    (128, 512, 512),
    epochs=60,
    static_epochs=30,
    max_shift=4,
    cutout=12,
    ema_decay=0.995,
    density=0.25,
)
TIERS = {tier.name: tier for tier in (TINY, SMALL, PAPER)}
