"""Graphs in API format, and how a server runs them."""

from __future__ import annotations

from support.cases import CASE, CHECKPOINT, Case, recorded_prompt, weights_folder
from support.server import Server


def graph(case: Case, behaviour: str, checkpoint: str = CHECKPOINT.name) -> dict:
    """The whole pack as an API graph that ends in a saved latent.

    `checkpoint` is a name that the server knows.
    """
    latent = f"{case.path.stem}_{behaviour}"
    return {
        **_model_nodes(case, checkpoint),
        "text": node(
            "MMDiffTextEncode",
            clip=["tiny", 1],
            mmdiff=["mmdiff", 0],
            text=recorded_prompt(case),
            negative=case.meta["negative_prompt"] or "",
            start=case.start(None),
            behaviour=behaviour,
            **_chain(len(case.slots()) - 1),
        ),
        **_subject_nodes(case),
        **_sampling_nodes(case),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix=latent),
    }


def _model_nodes(case: Case, checkpoint: str) -> dict:
    folder, scale = str(weights_folder(case.path.parent)), case.call["fuse_scale"]
    return {
        "tiny": node("MMDiffLoadTinyReferenceModel", folder=folder),
        "mmdiff": node("MMDiffLoad", checkpoint=checkpoint),
        "apply": node(
            "MMDiffApplyAttention",
            model=["tiny", 0],
            mmdiff=["mmdiff", 0],
            fuse_scale=scale,
            start_percent=0.0,
            end_percent=1.0,
            lora_strength=1.0,
        ),
    }


def _subject_nodes(case: Case) -> dict:
    """One encoder for each slot of the case, each chained to the one before."""
    nodes = {}
    for i in range(len(case.slots())):
        nodes[f"case{i}"] = node("MMDiffTestRecordedSubject", case=str(case.path), number=i)
        nodes[f"subject{i}"] = node(
            "MMDiffSubjectEncoder",
            mmdiff=["mmdiff", 0],
            clip_vision=["tiny", 3],
            image=[f"case{i}", 0],
            name=f"s{i}",
            weight=1.0,
            face=0,
            faces=[f"case{i}", 1],
            **_chain(i - 1),
        )
    return nodes


def _chain(last: int) -> dict:
    """The input `subjects` with the encoders up to number `last`; none where that is negative."""
    return {} if last < 0 else {"subjects": [f"subject{last}", 0]}


def _sampling_nodes(case: Case) -> dict:
    return {
        "recorded": node(
            "MMDiffTestRecordedSampling",
            case=str(case.path),
            positive=["text", 0],
            negative=["text", 1],
        ),
        "guider": node(
            "CFGGuider",
            model=["apply", 0],
            positive=["recorded", 0],
            negative=["recorded", 1],
            cfg=case.call["guidance_scale"],
        ),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["recorded", 2],
            guider=["guider", 0],
            sampler=["euler", 0],
            sigmas=["recorded", 3],
            latent_image=["recorded", 4],
        ),
    }


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def a_case_graph() -> dict:
    return graph(CASE, "released")


def executed(server: Server, prompt: dict) -> set[str]:
    """Nodes that really ran: not those the server answered from its cache."""
    entry = server.run(prompt)
    cached = next(m[1]["nodes"] for m in entry["status"]["messages"] if m[0] == "execution_cached")
    return set(prompt) - set(cached)
