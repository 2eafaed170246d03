"""What the pack costs a sampling: time, dispatched operations, FLOP, waits for the device, memory. Random weights.

    python tests/benchmark.py                                     SDXL's 70 layers at a fifth of the width, on the CPU
    python tests/benchmark.py --device cuda --scale full --masks  true SDXL in fp16
    python tests/benchmark.py --looks                             also regions found, nouns held, and maps watched
    python tests/benchmark.py --pack FOLDER                       also a checkout of ComfyUI_IPAdapter_plus

COMFYUI_PATH is a ComfyUI folder. All arms share one UNet in one process. Every timed step of an arm runs twice on the
same input, with what the pack added to the model call and without it, in turns one or the other first, so that the
ratio of the two does not depend on how fast the machine is at that minute. Times are those of the guider's model call,
one per step of Euler. Where other programs keep the machine busy, look at the ratio of the CPU time (all cores) too.
Operations and FLOP are counted in samplings of their own; what a pack does before the loop is timed beside the plain
model's samplings.

What is counted as a wait: an operation that makes the host wait for a GPU (reading a number, sizes that depend on data,
a blocking copy between devices). On the CPU the copies cannot be seen, the others can.
"""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import platform
import statistics
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark_host import BenchmarkError, use_host


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scale", choices=("reduced", "full"), default="reduced", help="width of the UNet's layers")
    parser.add_argument("--size", type=int, help="side of the picture in pixels (full: 1024, reduced: 512)")
    parser.add_argument("--subjects", default="1,2,4", help="numbers of subjects, each with one reference (4 tokens)")
    parser.add_argument("--masks", action="store_true", help="also with a mask for every subject")
    parser.add_argument("--looks", action="store_true", help="also what looks at attention or holds nouns, for two subjects")
    parser.add_argument("--cfg", type=float, default=5.0, help="1 runs the positive prompt alone, in one row")
    parser.add_argument("--steps", type=int, default=5, help="steps of one sampling; ratios leave out the first")
    parser.add_argument("--repeats", type=int, default=5, help="samplings of each arm")
    parser.add_argument("--threads", type=int, help="threads of torch; 1 is steadier where others use the machine too")
    parser.add_argument("--pack", type=Path, help="a checkout of ComfyUI_IPAdapter_plus to measure beside ours")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args(argv)
    args.size = args.size or {"full": 1024, "reduced": 512}[args.scale]
    try:
        args.subjects = [int(number) for number in args.subjects.split(",")]
    except ValueError:
        parser.error(f"--subjects is {args.subjects!r}, expected numbers such as 1,2,4")
    if min(args.subjects) < 1 or args.steps < 2 or args.repeats < 1:
        parser.error("there must be at least 1 subject, 2 steps and 1 repeat")
    if args.size < 64 or args.size % 64:
        parser.error(f"--size is {args.size}, expected a multiple of 64")
    return args


if __name__ == "__main__":
    ARGUMENTS = read_arguments()
    try:
        use_host(ARGUMENTS.device)
    except BenchmarkError as error:
        sys.exit(f"benchmark: {error}")

import comfy.model_management  # noqa: E402
import comfy.patcher_extension  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count  # noqa: E402

from mmdiff_core.bases import SDXL, Base  # noqa: E402
from mmdiff_core.checkpoints import shapes  # noqa: E402
from mmdiff_core.config import PORTRAIT_SDXL, MMDiffConfig  # noqa: E402
from mmdiff_core.host.apply import Strength, apply  # noqa: E402
from mmdiff_core.host.conditioning import BoundPrompt, carry  # noqa: E402
from mmdiff_core.host.watch import Recorder, WatchPlan, watch  # noqa: E402
from mmdiff_core.method.adapter import MMDiffAdapter, SubjectModules, collect_pairs  # noqa: E402
from mmdiff_core.method.subjects import FindRegions, PromptSubject, Region, Subject  # noqa: E402

from tiny_model import build  # noqa: E402

TRUE_CHANNELS = 320
TEXT_TOKENS, POOLED_WIDTH = 77, 1280
NOUNS = ((3,), (8,))        # text columns of two subjects' nouns
TOKENS = PORTRAIT_SDXL.tokens_per_reference
SDXL_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": TRUE_CHANNELS, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True, "context_dim": 2048,
    "num_head_channels": 64, "num_heads": -1, "adm_in_channels": 2816, "num_classes": "sequential",
    "use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False, "use_temporal_resblock": False,
}


# ---------------------------------------------------------------- the model and the adapter


@dataclass(frozen=True)
class Scale:
    """How wide the UNet is: SDXL's blocks and layers, `channels` instead of 320 wide."""

    channels: int
    context: int
    head: int
    rank: int

    @property
    def unet(self) -> dict[str, Any]:
        widths = {"model_channels": self.channels, "context_dim": self.context, "num_head_channels": self.head}
        return {**SDXL_UNET, **widths}

    @property
    def config(self) -> MMDiffConfig:
        if self.channels == TRUE_CHANNELS:
            return PORTRAIT_SDXL
        unet = tuple((b, i, n, width * self.channels // TRUE_CHANNELS) for b, i, n, width in SDXL.unet)
        base = dataclasses.replace(SDXL, name=f"sdxl-{self.channels}", unet=unet, context_width=self.context)
        return dataclasses.replace(PORTRAIT_SDXL, name=f"portrait-{base.name}", base=base)


SCALES = {"full": Scale(TRUE_CHANNELS, 2048, 64, 64), "reduced": Scale(64, 256, 16, 8)}


def make_model(scale: Scale, dtype: torch.dtype):
    """MODEL with random weights, on its device. The host leaves them unset: they could be slow numbers."""
    model = build.model(dtype=dtype, unet=scale.unet)
    comfy.model_management.load_model_gpu(model)
    for name, weight in model.model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            generator = torch.Generator(weight.device).manual_seed(len(name))
            weight.data.normal_(0, weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.data.fill_(float(name.endswith("weight")))
    return model


def make_adapter(scale: Scale, dtype: torch.dtype) -> MMDiffAdapter:
    """An adapter with random LoRA pairs. What encodes photographs has no part in it: no weights there."""
    generator = torch.Generator().manual_seed(1)
    sizes = shapes.unet_shapes(scale.config, scale.rank)
    pairs = {key: (torch.randn(shape, generator=generator) * 0.02).to(dtype) for key, shape in sizes.items()}
    with torch.device("meta"):
        modules = SubjectModules(scale.config)
    return MMDiffAdapter(scale.config, modules, collect_pairs(pairs), {}, {}, "benchmark", "random adapter")


def make_masks(count: int, size: int) -> list[Tensor]:
    """Upright stripes of the picture side by side; a single one is its left half."""
    edges = [round(i * size / max(count, 2)) for i in range(count + 1)]
    masks = [torch.zeros(size, size) for _ in range(count)]
    for mask, left, right in zip(masks, edges, edges[1:]):
        mask[:, left:right] = 1
    return masks


def make_subjects(adapter: MMDiffAdapter, masks: Sequence[Tensor | None]) -> tuple[PromptSubject, ...]:
    """Subjects of random tokens, one reference each."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for number, mask in enumerate(masks, 1):
        tokens = torch.randn(TOKENS, adapter.config.context_width, generator=generator)
        subject = Subject(f"subject {number}", tokens, {}, 1, adapter.fingerprint)
        made.append(PromptSubject(subject, region=Region(mask)))
    return tuple(made)


def make_text(scale: Scale, seed: int) -> list:
    """CONDITIONING of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, TEXT_TOKENS, scale.context, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, POOLED_WIDTH, generator=generator)}]]


# ---------------------------------------------------------------- arms


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to sample."""

    name: str
    model: Any
    positive: list
    negative: list


@dataclass(frozen=True, eq=False)
class World:
    """What all arms share."""

    scale: Scale
    size: int
    model: Any
    adapter: MMDiffAdapter
    positive: list
    negative: list

    def plain(self) -> Arm:
        return Arm("plain", self.model, self.positive, self.negative)

    def ours(self, subjects: int, masked: bool, lora: float = 1.0) -> Arm:
        """The pack with subjects in the positive prompt and none in the negative one."""
        masks = make_masks(subjects, self.size) if masked else [None] * subjects
        prompt = BoundPrompt(make_subjects(self.adapter, masks), self.adapter.fingerprint)
        name = label("ours", subjects, masked) + ("" if lora else ", lora_strength 0")
        model = apply(self.model, self.adapter, Strength(lora=lora))
        return Arm(name, model, carry(self.positive, prompt), carry(self.negative, None))

    def looking(self) -> list[Arm]:
        """What the other nodes of the pack add for two subjects: regions found, nouns held, maps watched."""
        each_step, settled = FindRegions(settle=0.01, update=True), FindRegions(settle=0.01)
        masked = [s.within(hold_nouns=True) for s in make_subjects(self.adapter, make_masks(2, self.size))]
        free = make_subjects(self.adapter, [None, None])
        model = apply(self.model, self.adapter, Strength())

        def arm(name: str, subjects: Sequence[PromptSubject], model=model) -> Arm:
            prompt = BoundPrompt(tuple(subjects), self.adapter.fingerprint, NOUNS)
            return Arm(f"2 subjects, {name}", model, carry(self.positive, prompt), carry(self.negative, None))

        return [
            arm("masked, nouns held too", masked),
            arm("regions found at every step", [s.within(find=each_step) for s in free]),
            arm("regions found in the first step", [s.within(find=settled) for s in free]),
            arm("regions found in the first step, nouns held too", [s.within(find=settled, hold_nouns=True) for s in free]),
            arm("maps watched", free, watch(model, Recorder(WatchPlan()))),
        ]

    def peer(self, module: types.ModuleType, subjects: int, masked: bool) -> Arm:
        """ComfyUI_IPAdapter_plus applied once per subject, with the layers and arguments of its own Apply node."""
        model = self.model.clone()
        masks = make_masks(subjects, self.size) if masked else [None] * subjects
        replacements: dict[tuple, Any] = {}
        for number, mask in enumerate(masks):
            for key, keywords in peer_layers(self.model, self.scale, number, mask):
                if key in replacements:
                    replacements[key].add(module.ipadapter_attention, **keywords)
                else:
                    replacements[key] = module.Attn2Replace(module.ipadapter_attention, **keywords)
        for key, replacement in replacements.items():
            model.set_model_attn2_replace(replacement, *key)
        return Arm(label("IPAdapter_plus", subjects, masked), model, self.positive, self.negative)


def label(pack: str, subjects: int, masked: bool) -> str:
    return f"{pack}, {subjects} subject{'s' * (subjects > 1)}{', masked' * masked}"


def make_world(scale: Scale, size: int, dtype: torch.dtype, meter: Meter) -> World:
    """Model, adapter and prompts; the meter goes on the model before any arm does, and so is outside all of them."""
    model = make_model(scale, dtype)
    wrappers = comfy.patcher_extension.WrappersMP
    model.add_wrapper_with_key(wrappers.SAMPLER_SAMPLE, "benchmark", meter.on_run)
    model.add_wrapper_with_key(wrappers.PREDICT_NOISE, "benchmark", meter.on_step)
    return World(scale, size, model, make_adapter(scale, dtype), make_text(scale, 3), make_text(scale, 4))


def make_arms(world: World, counts: Sequence[int], masked: bool, peer: types.ModuleType | None, looks: bool = False) -> list[Arm]:
    """Everything that is compared with the plain model."""
    kinds = [False, True] if masked else [False]
    arms = [world.ours(count, kind) for kind in kinds for count in counts]
    arms.append(world.ours(counts[0], False, lora=0.0))
    if looks:
        arms += world.looking()
    if peer is not None:
        arms += [world.peer(peer, count, kind) for kind in kinds for count in counts]
    return arms


# ---------------------------------------------------------------- another pack


class PeerAdapter(nn.Module):
    """K and V layers under the names that ComfyUI_IPAdapter_plus looks for, with random weights."""

    def __init__(self, scale: Scale, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.ip_layers = nn.Module()
        self.ip_layers.to_kvs = nn.ModuleDict()
        for number, block in enumerate(scale.config.base.blocks):
            for part in ("k", "v"):
                linear = nn.Linear(scale.context, block.width, bias=False, dtype=dtype, device=device)
                self.ip_layers.to_kvs[f"{2 * number + 1}_to_{part}_ip"] = linear.requires_grad_(False)

    def get_multigpu_clone(self, device: torch.device) -> PeerAdapter:
        return self


def peer_layers(model, scale: Scale, seed: int, mask: Tensor | None) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """(layer, arguments) of one application. Its middle block has the number 1, which the host never asks for."""
    device, dtype = model.load_device, model.model.get_dtype()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, TOKENS, scale.context, generator=generator).to(device, dtype)
    sampling = model.get_model_object("model_sampling")
    shared = {
        "ipadapter": PeerAdapter(scale, dtype, device), "weight": 0.8,
        "cond": tokens[:1], "cond_alt": None, "uncond": tokens[1:], "embeds_scaling": "V only",
        "weight_type": "linear", "mask": None if mask is None else mask[None].to(device, dtype), "unfold_batch": False,
        "sigma_start": sampling.percent_to_sigma(0.0), "sigma_end": sampling.percent_to_sigma(1.0),
    }
    for number, block in enumerate(scale.config.base.blocks):
        key = ("middle", 1, block.index) if block.block == "middle" else block.slot
        yield key, {**shared, "module_key": str(2 * number + 1)}


def read_peer(folder: Path) -> types.ModuleType:
    """The other pack's attention, without its nodes."""
    if not (folder / "CrossAttentionPatch.py").is_file():
        raise BenchmarkError(f"{folder} has no CrossAttentionPatch.py; --pack is a checkout of ComfyUI_IPAdapter_plus")
    package = types.ModuleType("benchmark_peer")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    try:
        return importlib.import_module(f"{package.__name__}.CrossAttentionPatch")
    except ImportError as error:
        raise BenchmarkError(f"the pack in {folder} cannot be imported: {error}") from error


# ---------------------------------------------------------------- counting


READS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class OperationCounter(TorchDispatchMode):
    """Counts what reaches the dispatcher: all operations, those that are no mere views, and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:                          # an operation made of others counts as those others
            out = func.decompose(*args, **(kwargs or {}))
        if out is not NotImplemented:
            return out
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        self.operations[name] += 1
        self.kernels[name] += not is_view(func)
        self.waits[name] += waits(func, args, kwargs or {}, out)
        return out


def is_view(func: torch._ops.OpOverload) -> bool:
    """Whether the result only looks at the argument's numbers, and nothing is computed."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def waits(func: torch._ops.OpOverload, args: tuple, kwargs: dict, out: object) -> bool:
    """Whether the host would wait for a GPU here."""
    name = func._schema.name
    if name in INDEXING:
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name == "aten::repeat_interleave":
        return func._overloadname == "Tensor" and kwargs.get("output_size") is None
    if name in ("aten::copy_", "aten::_to_copy"):
        blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
        tensors = [t for t in (*args[:2], out) if isinstance(t, Tensor)]
        return blocking and len({t.device for t in tensors}) > 1
    return name in READS


def flop_counter() -> FlopCounterMode:
    """torch's counter, which does not know the CPU's fused attention."""
    def attention(q, k, v, *args, **kwargs) -> int:
        return sdpa_flop_count(q, k, v)

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: attention})


@dataclass(frozen=True)
class Counts:
    """Operations of one step in the middle of a sampling; `first_` of its first step."""

    operations: dict[str, int]
    kernels: int
    waits: int
    flop: int
    first_operations: int
    first_waits: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.operations.values())


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Span:
    """From when to when a model call ran, and its seconds on all cores of the CPU together."""

    start: Any
    end: Any
    busy: float


class Meter:
    """Sees each model call of a sampling from outside, with all that a pack adds to it."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        self.begin()

    def begin(self, probes: Sequence[contextlib.AbstractContextManager] = (), paired: bool = False) -> None:
        """Forget the last sampling. Step i of the next runs inside probes[i]; when `paired`, also without the pack."""
        self.probes, self.paired = list(probes), paired
        self.started: Any = None
        self.steps: list[Span] = []
        self.bare: list[Span] = []

    def now(self) -> Any:
        """A point in time, on a GPU in the GPU's own queue so that taking it does not disturb."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self.cuda else end - start

    def on_run(self, executor, *args, **kwargs):
        self.started = self.now()
        return executor(*args, **kwargs)

    def on_step(self, executor, x, timestep, model_options, seed):
        number = len(self.steps)
        if self.paired and number % 2 == 0:
            self.call(self.bare, executor, x, timestep, without_packs(model_options), seed)
        with self.probes[number] if number < len(self.probes) else contextlib.nullcontext():
            out = self.call(self.steps, executor, x, timestep, model_options, seed)
        if self.paired and number % 2:
            self.call(self.bare, executor, x, timestep, without_packs(model_options), seed)
        return out

    def call(self, spans: list[Span], executor, *args):
        """One model call, and when it was."""
        start, busy = self.now(), time.process_time()
        out = executor(*args)
        spans.append(Span(start, self.now(), time.process_time() - busy))
        return out


def without_packs(model_options: dict[str, Any]) -> dict[str, Any]:
    """The options of a model call without replaced layers and without wrappers around the UNet."""
    options = dict(model_options["transformer_options"])
    options.pop("patches_replace", None)
    options["wrappers"] = dict(options.get("wrappers", {}))
    options["wrappers"].pop(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, None)
    return {**model_options, "transformer_options": options}


@dataclass(frozen=True)
class Timing:
    """One sampling: seconds before its first step, of each step with the pack and bare, CPU time too, peak memory."""

    before: float
    steps: list[float]
    bare: list[float]
    busy: list[float]
    bare_busy: list[float]
    peak: int


def sample(arm: Arm, size: int, steps: int, cfg: float) -> Tensor:
    """Euler over the normal schedule."""
    noise = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.calculate_sigmas(arm.model.get_model_object("model_sampling"), "normal", steps)
    return comfy.sample.sample_custom(
        arm.model, noise, cfg, comfy.samplers.sampler_object("euler"), sigmas, arm.positive, arm.negative,
        torch.zeros_like(noise), disable_pbar=True, seed=0,
    )


def time_arm(arm: Arm, meter: Meter, args: argparse.Namespace, paired: bool = True) -> Timing:
    """One sampling, timed."""
    meter.begin(paired=paired)
    if meter.cuda:
        comfy.model_management.load_model_gpu(arm.model)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    sample(arm, args.size, args.steps, args.cfg)
    if meter.cuda:
        torch.cuda.synchronize()
    steps, bare = ([meter.seconds(span.start, span.end) for span in spans] for spans in (meter.steps, meter.bare))
    first = meter.bare[0] if paired else meter.steps[0]
    return Timing(
        meter.seconds(meter.started, first.start), steps, bare, [span.busy for span in meter.steps],
        [span.busy for span in meter.bare], torch.cuda.max_memory_allocated() if meter.cuda else 0,
    )


def count_arm(arm: Arm, meter: Meter, size: int, cfg: float) -> Counts:
    """A sampling of three steps: operations of the first and of the second, FLOP of the third."""
    first, second, flop = OperationCounter(), OperationCounter(), flop_counter()
    meter.begin([first, second, flop])
    sample(arm, size, 3, cfg)
    return Counts(
        dict(second.operations), second.kernels.total(), second.waits.total(), flop.get_total_flops(),
        first.operations.total(), dict(+first.waits),
    )


def time_all(plain: Arm, arms: Sequence[Arm], meter: Meter, args: argparse.Namespace
             ) -> tuple[list[Timing], list[list[Timing]]]:
    """Timings of the plain model's own samplings, and of each arm's; in every repeat one of each."""
    plains, timings = [], [[] for _ in arms]
    for repeat in range(args.repeats):
        say(f"repeat {repeat + 1} of {args.repeats}")
        plains.append(time_arm(plain, meter, args, paired=False))
        for found, arm in zip(timings, arms):
            found.append(time_arm(arm, meter, args))
    return plains, timings


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the report


@dataclass(frozen=True)
class Line:
    """One arm in the report. Everything called extra is the arm less the plain model."""

    arm: str
    step_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    pairs: int
    cpu_ratio: float
    cpu_ratio_quartiles: tuple[float, float]
    operations: int
    operations_ratio: float
    kernels_ratio: float
    flop_ratio: float
    extra_waits: int
    extra_waits_first_step: int
    before_loop_extra_ms: float
    first_step_extra_ms: float
    peak_extra_mb: float | None
    extra_operations: dict[str, int]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def make_line(arm: Arm, timings: Sequence[Timing], plains: Sequence[Timing], counts: Counts, plain: Counts) -> Line:
    """The first steps count for themselves: masks are made there."""
    ratios = [step / bare for t in timings for step, bare in zip(t.steps[1:], t.bare[1:])]
    cpu_ratios = [step / bare for t in timings for step, bare in zip(t.busy[1:], t.bare_busy[1:])]
    steps, bare = (statistics.median(s for t in timings for s in getattr(t, kind)[1:]) for kind in ("steps", "bare"))
    first = statistics.median(t.steps[0] - t.bare[0] for t in timings) - (steps - bare)
    before = statistics.median(t.before for t in timings) - statistics.median(t.before for t in plains)
    peak = statistics.median(t.peak for t in timings) - statistics.median(t.peak for t in plains)
    extra = Counter(counts.operations)
    extra.subtract(plain.operations)
    return Line(
        arm=arm.name, step_ms=1000 * steps, ratio=statistics.median(ratios), ratio_quartiles=quartiles(ratios),
        pairs=len(ratios), cpu_ratio=statistics.median(cpu_ratios), cpu_ratio_quartiles=quartiles(cpu_ratios),
        operations=counts.total, operations_ratio=counts.total / plain.total,
        kernels_ratio=counts.kernels / plain.kernels, flop_ratio=counts.flop / plain.flop,
        extra_waits=counts.waits - plain.waits,
        extra_waits_first_step=sum(counts.first_waits.values()) - sum(plain.first_waits.values()),
        before_loop_extra_ms=1000 * before, first_step_extra_ms=1000 * first,
        peak_extra_mb=peak / 2**20 if timings[0].peak else None,
        extra_operations={name: n for name, n in extra.most_common() if n},
    )


def state_bytes(subjects: int, bytes_per_number: int = 2, base: Base = SDXL) -> int:
    """K and V of all layers for subjects with one reference each, at SDXL's true widths in fp16."""
    return sum(2 * TOKENS * subjects * block.width * bytes_per_number for block in base.blocks)


def machine(device: str) -> dict[str, Any]:
    """What the numbers were taken on."""
    import comfyui_version
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "comfyui": comfyui_version.__version__, "python": platform.python_version()}


COLUMNS = ("arm", "step, ms", "time ratio (quartiles)", "CPU time ratio (quartiles)", "operations", "kernels",
           "FLOP", "extra waits a step / first step", "extra before the loop, ms", "extra first step, ms",
           "extra peak, MB")


def table_row(line: Line) -> tuple[str, ...]:
    def spread(ratio: float, low_high: tuple[float, float]) -> str:
        return f"{ratio:.3f} ({low_high[0]:.3f} to {low_high[1]:.3f})"

    return (
        line.arm, f"{line.step_ms:.1f}", spread(line.ratio, line.ratio_quartiles),
        spread(line.cpu_ratio, line.cpu_ratio_quartiles),
        f"{line.operations_ratio:.3f}", f"{line.kernels_ratio:.3f}", f"{line.flop_ratio:.4f}",
        f"{line.extra_waits} / {line.extra_waits_first_step}", f"{line.before_loop_extra_ms:.1f}",
        f"{line.first_step_extra_ms:.1f}", "-" if line.peak_extra_mb is None else f"{line.peak_extra_mb:.1f}",
    )


def markdown(lines: Sequence[Line], plain_ms: float, plain: Counts) -> str:
    """The report's table; ratios are to the plain model."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS)]
    rows.append(("plain", f"{plain_ms:.1f}", "1", "1", f"1 (= {plain.total})", f"1 (= {plain.kernels})",
                 f"1 (= {plain.flop / 1e9:.1f} G)", "0", "0", "0", "-"))
    rows += [table_row(line) for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def run(args: argparse.Namespace, scale: Scale) -> tuple[list[Line], float, Counts]:
    """Count, then time, every arm."""
    dtype = torch.float16 if args.device == "cuda" else torch.float32
    peer = read_peer(args.pack) if args.pack else None
    meter = Meter(args.device)
    world = make_world(scale, args.size, dtype, meter)
    plain, arms = world.plain(), make_arms(world, args.subjects, args.masks, peer, args.looks)
    counts = []
    for arm in (plain, *arms):
        say(f"counting: {arm.name}")
        counts.append(count_arm(arm, meter, args.size, args.cfg))
    plains, timings = time_all(plain, arms, meter, args)
    lines = [make_line(arm, timings[i], plains, counts[i + 1], counts[0]) for i, arm in enumerate(arms)]
    return lines, 1000 * statistics.median(step for t in plains for step in t.steps[1:]), counts[0]


def main(args: argparse.Namespace) -> None:
    """Measure, print the table, write the file."""
    scale = SCALES[args.scale]
    torch.set_num_threads(args.threads or torch.get_num_threads())
    with torch.inference_mode():
        lines, plain_ms, plain = run(args, scale)
    sizes = {n: state_bytes(n) for n in args.subjects}
    print(markdown(lines, plain_ms, plain))
    each = ", ".join(f"{n} subject{'s' * (n > 1)} {size / 1e6:.2f} MB" for n, size in sizes.items())
    print(f"\nK and V at SDXL's widths in fp16: {each}")
    ran = f"{args.repeats} samplings of {args.steps} steps"
    print(f"{machine(args.device)}, {args.scale}, {args.size} px, CFG {args.cfg:g}, {ran}")
    if args.json:
        report = {
            "machine": machine(args.device),
            "arguments": {k: v for k, v in vars(args).items() if not isinstance(v, Path)},
            "plain": {"step_ms": plain_ms, **dataclasses.asdict(plain)},
            "arms": [dataclasses.asdict(line) for line in lines],
            "state_bytes_sdxl_fp16": sizes,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(ARGUMENTS)
    except BenchmarkError as error:
        sys.exit(f"benchmark: {error}")
