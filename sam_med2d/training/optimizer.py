"""Which parameters move at which rate, and how the rate changes along the run."""

import argparse
import math

import torch

from segment_anything import Sam


def build_optimizer(model: Sam, args: argparse.Namespace) -> torch.optim.Optimizer:
    """Adam over what is trained; a group's "lr_scale" is its share of the learning rate."""
    adapters = model.image_encoder.adapters()
    adapter_lr = args.adapter_lr or args.lr
    rates = (
        ([p for adapter in adapters for p in adapter.norm.parameters()], args.adapter_norm_lr or adapter_lr),
        ([p for adapter in adapters for p in adapter.parameters()], adapter_lr),
        (model.parameters(), args.lr),
    )
    groups, taken = [], set()
    for parameters, rate in rates:
        own = [p for p in parameters if p.requires_grad and id(p) not in taken]
        taken.update(map(id, own))
        if own:
            groups.append({"params": own, "lr_scale": rate / args.lr})
    return torch.optim.Adam(groups, lr=args.lr, fused=model.device.type in ("cpu", "cuda"))


def lr_factor(args: argparse.Namespace, step: int, steps_an_epoch: int) -> float:
    """What --lr is multiplied by; a function of the place in the run, so there is no state to save."""
    warmup = min(1.0, (step + 1) / args.warmup) if args.warmup else 1.0
    if args.lr_scheduler == "multistep":
        return warmup * 0.5 ** sum(step // steps_an_epoch >= milestone for milestone in args.milestones)
    if args.lr_scheduler == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * step / (args.epochs * steps_an_epoch)))
    return warmup
