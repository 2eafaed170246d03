"""How far a sampling is, is a matter of sigma: for every sampler, schedule and split alike."""

from __future__ import annotations

import random
from types import SimpleNamespace

import comfy.samplers
import pytest
import torch

from mmdiff_core.host import finder as finder_module
from mmdiff_core.host import progress
from mmdiff_core.host.application import Application, Strength
from mmdiff_core.host.apply import apply
from mmdiff_core.host.finder import make_finder
from mmdiff_core.host.layer_attention import Columns
from mmdiff_core.host.parts import Latents
from mmdiff_core.host.progress import LateAnswer
from mmdiff_core.host.watch import Recorder, WatchPlan, watch
from mmdiff_core.method.subjects import FindRegions

from support.scene import close, half_masks
from support.splitters import noise_of, sample
from support.watching import NOUNS, prompt

LIKE = "sd15"  # fewer layers than SDXL, so more graphs
SAMPLERS = (
    "euler",
    "euler_ancestral",
    "heun",
    "dpm_2",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2m",
    "dpmpp_sde",
    "lcm",
    "uni_pc",
    "ipndm",
    "res_multistep",
    "euler_cfg_pp",
    "seeds_2",
)


def finding(scene, settle: float, **plan) -> list:
    find = FindRegions(settle, sharpness=50.0, **plan)
    return prompt(scene, tuple(s.within(find=find) for s in scene.subjects))


class Calls(list):
    """Sigma of every model call, whether regions held in it, and whether somebody looked."""

    def __init__(self, monkeypatch):
        super().__init__()
        groups = Application.groups

        def noted(application, rows, x, options):
            found = groups(application, rows, x, options)
            for group in found:
                held, looked = group.regions is not None, bool(group.watchers)
                self.append((float(options["sigmas"][0]), held, looked))
            return found

        monkeypatch.setattr(Application, "groups", noted)


def schedule(model, name: str, steps: int) -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), name, steps)


def bound_of(model, settle: float) -> float:
    return float(model.get_model_object("model_sampling").percent_to_sigma(settle))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_regions_hold_at_exactly_the_sigmas_behind_settle_whatever_the_sampler_calls(
    scene, model, sampler, monkeypatch
):
    draw = random.Random(sampler)
    settle, calls = draw.uniform(0.2, 0.6), Calls(monkeypatch)
    sigmas = schedule(model, draw.choice(("normal", "karras", "simple")), draw.randint(5, 7))
    noise = noise_of(1, (8, 8), 0)
    sample(model, noise, finding(scene, settle), scene.negative, sigmas, 1.5, sampler)
    bound, first = bound_of(model, settle), calls[0][0]
    assert any(held for _, held, _ in calls) and not calls[0][1]
    for sigma, held, looked in calls:
        if abs(sigma / bound - 1) > 1e-3 and sigma != first:
            assert held == (sigma < bound) and looked == (sigma > bound), sigma


def test_at_twenty_steps_settle_comes_with_the_seventh_call_of_euler(scene, model, monkeypatch):
    calls = Calls(monkeypatch)
    sigmas = schedule(model, "normal", 20)
    sample(model, noise_of(1, (8, 8), 0), finding(scene, 0.3), scene.negative, sigmas, 1.0)
    assert [held for _, held, _ in calls].index(True) == 6


def test_subjects_are_free_again_where_a_sampler_goes_back_above_settle(
    scene, model, monkeypatch
):
    """A schedule with a restart, as restart samplers write it."""
    calls, bound = Calls(monkeypatch), bound_of(model, 0.4)
    sigmas = torch.tensor([4.0, 1.5, 0.8, 0.4, 1.5, 0.8, 0.4, 0.0]) * bound
    sample(model, noise_of(1, (8, 8), 0), finding(scene, 0.4), scene.negative, sigmas, 1.0)
    settled = [sigma <= bound for sigma in sigmas[:-1].tolist()]
    assert [held for _, held, _ in calls] == settled


@pytest.mark.parametrize("seed", range(6))
def test_a_second_sampler_that_goes_on_where_the_first_stopped_keeps_what_was_found(
    scene, model, seed
):
    draw = random.Random(seed)
    steps, settle, images = 6, draw.uniform(0.2, 0.7), draw.randint(1, 2)
    sigmas = schedule(model, "normal", steps)
    stop = draw.randint(1, steps - 1)
    positive = finding(scene, settle, update=draw.random() < 0.3)
    noise = noise_of(images, (8, 8), seed)

    def run(noise, sigmas, latent=None):
        return sample(model, noise, positive, scene.negative, sigmas, latent=latent)

    whole = run(noise, sigmas)
    halfway = run(noise, sigmas[: stop + 1])
    # another sampling between the two changes nothing for whoever goes on from other latents
    other = run(torch.zeros_like(noise), sigmas[stop:], halfway + 5)
    assert close(run(noise, sigmas), whole), "a sampling of its own starts anew"
    halfway = run(noise, sigmas[: stop + 1])
    assert close(run(torch.zeros_like(noise), sigmas[stop:], halfway), whole)
    assert not close(other, whole)


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
def test_where_no_sigma_may_be_read_the_regions_and_maps_are_the_same(
    scene, model, monkeypatch, sampler, update
):
    """An accelerator decides on the device; here the CPU is made to do so."""
    find = FindRegions(0.4, sharpness=50.0, update=update)
    bound = [s.within(find=find, bound_self_attention=True) for s in scene.subjects]
    positive = prompt(scene, tuple(bound))
    sigmas, noise = schedule(model, "normal", 5), noise_of(2, (8, 8), 3)

    def run():
        recorder = Recorder(WatchPlan(start=0.2, end=0.8, strip=2))
        out = sample(
            watch(model, recorder), noise, positive, scene.negative, sigmas, sampler=sampler
        )
        return out, recorder.maps[0]

    read, maps = run()
    for module in (progress, finder_module):
        monkeypatch.setattr(module, "read_sigma", lambda sigmas: sigmas[:1])
    unread, same = run()
    assert close(read, unread)
    assert torch.allclose(maps.text, same.text, atol=1e-4)
    assert torch.allclose(maps.image, same.image, atol=1e-4)


@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("what", ["hold_nouns", "bound_self_attention"])
def test_where_no_sigma_may_be_read_the_base_is_held_in_the_same_steps(
    scene, monkeypatch, start, what
):
    """Apply's start and end are those of all that is held, also where the device alone knows."""
    pairs = zip(scene.subjects, half_masks(8), strict=True)
    held = [s.within(mask=mask, **{what: True}) for s, mask in pairs]
    patched = apply(scene.model, scene.adapter, Strength(start=start, end=0.9))
    sigmas, noise = schedule(patched, "normal", 5), noise_of(1, (8, 8), 3)

    def run() -> torch.Tensor:
        return sample(patched, noise, prompt(scene, tuple(held)), scene.negative, sigmas)

    read = run()
    monkeypatch.setattr(progress, "read_sigma", lambda sigmas: sigmas[:1])
    assert close(run(), read)


@pytest.mark.parametrize("update", [False, True])
def test_nothing_is_read_back_from_an_accelerator_to_find_regions(scene, model, update):
    """Here the meta device, which cannot be read at all."""
    meta, find = torch.device("meta"), FindRegions(0.4, update=update)
    subjects = tuple(s.within(find=find) for s in scene.subjects)
    columns = Columns.of(subjects, NOUNS, 77, meta)
    sampling = model.get_model_object("model_sampling")
    finder = make_finder(subjects, columns, sampling, Latents(2, (8, 8)), frozenset())
    for _ in range(3):
        sigmas = torch.empty(2, device=meta)
        regions, weight = finder.regions(sigmas), finder.looks(sigmas)
        assert regions.device == meta and regions.shape == (2, 3, 8, 8)
        assert update or weight.device == meta


def test_a_yes_of_a_gpu_is_known_once_it_has_arrived_and_nothing_waits_for_it(monkeypatch):
    arrived = []

    class Event:
        def record(self):
            arrived.append(False)

        def query(self):
            return arrived[-1]

    def on_gpu(answer: bool):
        return SimpleNamespace(
            device=SimpleNamespace(type="cuda"), to=lambda *a, **k: torch.tensor([answer])
        )

    monkeypatch.setattr(torch.cuda, "Event", Event)
    late = LateAnswer()
    late.ask(on_gpu(False))
    late.ask(on_gpu(True))
    assert not late.said and len(arrived) == 1
    arrived[-1] = True
    late.ask(on_gpu(True))  # the no has arrived
    late.ask(on_gpu(True))
    assert not late.said and len(arrived) == 2
    arrived[-1] = True
    late.ask(on_gpu(True))
    late.ask(on_gpu(False))
    assert late.said and len(arrived) == 2


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpm_adaptive", "uni_pc"])
def test_every_sigma_of_a_run_is_recorded_in_the_part_it_belongs_to(scene, model, sampler):
    """Parts hold the same sigmas whatever is called between them, so all have something to show."""
    recorder = Recorder(WatchPlan(strip=3, layers="middle"))
    sigmas = schedule(model, "normal", 6)
    noise = noise_of(1, (8, 8), 0)
    sample(
        watch(model, recorder), noise, prompt(scene), scene.negative, sigmas, 1.5, sampler
    )
    assert len(recorder.maps[0].text) == 3
    total = recorder.maps[0].image.sum(2)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-3)
