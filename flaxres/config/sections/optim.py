"""Settings of the optimizer, schedule and loss."""

import dataclasses
from typing import Literal

from flaxres.config import _rules as rules
from flaxres.config._rules import optional, setting
from flaxres.models.registry import MODELS


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizer, the learning rate schedule and the loss.

    Examples:
      >>> OptimConfig(name="lamb", learning_rate=5e-3).learning_rate
      0.005
    """

    name: Literal["sgd", "sgdw", "lars", "lamb", "adamw", "muon"] = setting("sgd")
    """Optimizer. 'sgdw' is SGD with decoupled weight decay that follows
    the schedule: (rate / peak) * decay * weight in each step."""
    learning_rate: float = setting(0.1, rules.NOT_NEGATIVE)
    """Peak learning rate for this batch size; nothing rescales it."""
    momentum: float = setting(0.9, rules.BELOW_ONE)
    """Momentum of SGD, LARS and Muon; first beta of LAMB and AdamW."""
    nesterov: bool = setting(False)
    """Use Nesterov's momentum (SGD, LARS and Muon)."""
    beta2: float = setting(0.999, rules.BELOW_ONE)
    """Decay of the squared gradients: LAMB, AdamW, and Muon for parameters
    that are no kernels of convolutions."""
    epsilon: float = setting(1e-6, rules.POSITIVE)
    """Added to the root of the squared gradients where beta2 is used."""
    trust_coefficient: float = setting(0.001, rules.NOT_NEGATIVE)
    """LARS: coefficient of the ratio between the norms of weights and
    gradients."""
    weight_decay: float = setting(1e-4, rules.NOT_NEGATIVE)
    """Weight decay; SGD and LARS add it to the gradient, as PyTorch's SGD
    does; LAMB, AdamW and Muon add it to the update."""
    decay_norm_and_bias: bool = setting(False)
    """Apply weight decay (and the trust ratio of LARS and LAMB) to norms
    and biases too."""
    clip_norm: float = setting(0.0, rules.NOT_NEGATIVE)
    """Maximum norm of the whole gradient; 0 is no limit."""
    adaptive_clip: float = setting(0.0, rules.NOT_NEGATIVE)
    """Maximum norm of each unit's gradient as a share of its weights'
    (Brock et al. 2021), but for the classes; 0 is no limit."""
    layer_decay: float = setting(1.0, rules.UP_TO_ONE)
    """Learning rate of each stage as a share of the next stage's; the head
    has the full rate."""
    sam_rho: float = setting(0.0, rules.NOT_NEGATIVE)
    """Sharpness-aware minimisation (Foret et al. 2021): length of the
    ascent step; 0 is off."""
    sam_every: int = setting(1, rules.POSITIVE)
    """Steps between uses of SAM."""
    schedule: Literal["cosine", "step", "linear", "polynomial", "constant", "wsd"] = setting(
        "cosine"
    )
    """Schedule after the warmup: half a cosine, a line or a polynomial of
    `power` to `final_scale`, steps at `milestones`, a constant; 'wsd'
    (warmup, stable, decay) is a constant and then a line."""
    warmup_epochs: float = setting(0.0, rules.NOT_NEGATIVE)
    """Epochs of linear warmup from `warmup_scale` times the peak."""
    warmup_steps: int | None = setting(None, optional(rules.NOT_NEGATIVE))
    """Steps of warmup; overrides warmup_epochs."""
    warmup_scale: float = setting(0.0, rules.NOT_NEGATIVE)
    """Learning rate at the start of the warmup, as a share of the peak."""
    final_scale: float = setting(0.0, rules.NOT_NEGATIVE)
    """Learning rate at the end as a share of the peak: cosine, linear,
    polynomial, WSD."""
    decay_share: float = setting(0.2, rules.SHARE)
    """WSD: share of the run's steps in which the rate falls to
    `final_scale` (Hägele et al. 2024)."""
    power: float = setting(2.0, rules.POSITIVE)
    """Polynomial: exponent of (1 - progress)."""
    milestones: tuple[float, ...] = setting((), rules.MILESTONES)
    """Step schedule: epochs at which the learning rate is multiplied by
    `gamma`."""
    milestone_steps: tuple[int, ...] = setting((), rules.MILESTONES)
    """Step schedule: steps; overrides milestones."""
    gamma: float = setting(0.1, rules.POSITIVE)
    """Step schedule: factor at each milestone."""
    label_smoothing: float = setting(0.0, rules.BELOW_ONE)
    """Share of the target that is spread evenly over all classes."""
    class_balance: float = setting(0.0, rules.SHARE)
    """Weight of a class in the cross entropy: 1 / its number of images, to
    this power. 0 weighs all images alike, 1 all classes. With
    data.multi_label: weight of a class where it is a label, the number
    of other images / that of its images, to this power."""
    loss: Literal["cross_entropy", "binary", "binary_sum"] = setting("cross_entropy")
    """'binary' is binary cross entropy of each class (Wightman et al.
    2021), averaged over classes as in timm; 'binary_sum' sums over
    classes."""
    binary_threshold: float | None = setting(None, optional(rules.BELOW_ONE))
    """Binary losses: targets above the threshold become 1, others 0."""
    distill_model: str | None = setting(None, choices=MODELS)
    """Teacher network, a name of `flaxres.list_models()`, with
    `distill_weights`; it sees the same images."""
    distill_weights: str | None = setting(None)
    """File of the teacher's weights."""
    distill_alpha: float = setting(0.5, rules.SHARE)
    """Share of the teacher in the loss."""
    distill_temperature: float = setting(1.0, rules.POSITIVE)
    """Temperature of both distributions in the divergence (Hinton et al.
    2015), whose gradient is scaled by its square."""
