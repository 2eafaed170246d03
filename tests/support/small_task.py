"""A task on the small world's base with a shaken adapter, its gradients, its images in a graph."""

from __future__ import annotations

import torch

from mmdiff_core.method.subjects import PromptSubject
from mmdiff_core.training.config import AdapterConfig, ConstraintConfig, RunConfig
from mmdiff_core.training.trainable import to_flat

RUN = RunConfig(
    base="small-world",
    adapter=AdapterConfig(name="small-world", rank=4, text_rank=4),
    constraint=ConstraintConfig(text=0.3, image=0.2),
)


def shake(task, seed: int = 0, scale: float = 0.05) -> None:
    """Nothing trained is zero any more, so that every part shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in task.adapter.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def build(run: RunConfig = RUN):
    from mmdiff_core.host.frozen_base.build import build_task

    task = build_task(run)
    shake(task)
    return task


def gradients(task, batch) -> dict[str, torch.Tensor]:
    task.zero_grad(set_to_none=True)
    task(batch)["loss"].backward()
    return {name: p.grad.clone() for name, p in task.named_parameters()}


def through_the_nodes(task, tmp_path, references, regions, caption, noise, steps, cfg, sampler):
    """The picture that the graph's own functions sample from an adapter exported by the trainer."""
    import comfy.sample

    from mmdiff_core.checkpoints import checkpoint
    from mmdiff_core.host import small_world
    from mmdiff_core.host.apply import Strength, apply
    from mmdiff_core.host.encode import encode_subject
    from mmdiff_core.host.models import load_mmdiff
    from mmdiff_core.host.prompt import encode_prompt

    path = tmp_path / "trained.safetensors"
    checkpoint.save_single(
        path, task.adapter.config, to_flat(task.adapter.state_dict()), dtype=torch.float32
    )
    mmdiff = load_mmdiff(path)
    model, clip, clip_vision, _ = small_world.load()
    subjects = tuple(
        PromptSubject(
            encode_subject(mmdiff, clip_vision, refs.movedim(1, -1), None, f"s{i}").subject,
            region=region,
        )
        for i, (refs, region) in enumerate(zip(references, regions, strict=True))
    )
    prompt = encode_prompt(clip, mmdiff, caption, "", subjects)
    patched = apply(model, mmdiff.adapter, Strength(fuse_scale=1.0))
    return comfy.sample.sample(
        patched,
        noise,
        steps,
        cfg,
        sampler,
        "normal",
        prompt.positive,
        prompt.negative,
        torch.zeros_like(noise),
        denoise=1.0,
        seed=0,
    )
