"""Reference images through sockets that appear one by one (io.Autogrow)."""

from __future__ import annotations

import pytest
import torch

from support.every_node import prompt_with
from support.graphs import node
from support.in_process import Host, Refused, Sink


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Host(tmp_path_factory.mktemp("host"), monkeypatch)


def images(height: int, width: int, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.rand(count, height, width, 3, generator=generator)


def encode(host, image: torch.Tensor, **more):
    """The subject of an encoder with these images, linked as the page links them."""
    links = {f"more.{name}": [name, 0] for name in more}
    prompt = prompt_with(host, "MMDiffSubjectEncoder", image=["first", 0], **links)
    prompt |= {"first": host.give(image)}
    prompt |= {name: host.give(value) for name, value in more.items()}
    (encoder,) = (
        number
        for number, made in prompt.items()
        if made["class_type"] == "MMDiffSubjectEncoder" and made["inputs"]["image"][0] == "first"
    )
    host.run(prompt | {"sink": node("Sink", value=[encoder, 0])})
    (chained,) = Sink.taken[0]
    return chained.subject


def same(one, other) -> bool:
    words = all(torch.equal(one.words[k], other.words[k]) for k in one.words)
    return words and torch.equal(one.tokens, other.tokens)


def test_images_on_growing_sockets_are_references_like_those_of_a_batch(host):
    both = images(64, 64, 2)
    grown = encode(host, both[:1], image_2=both[1:])
    assert grown.references == 2 and same(grown, encode(host, both))


def test_images_on_growing_sockets_keep_their_own_sizes_and_their_order(host):
    first, second, third = images(64, 64), images(40, 96), images(100, 30)
    grown = encode(host, first, image_2=second, image_3=third)
    alone = [encode(host, image).tokens for image in (first, second, third)]
    assert grown.references == 3
    assert torch.allclose(grown.tokens, torch.cat(alone), atol=1e-5)


def test_a_graph_without_growing_sockets_runs_as_before(host):
    assert encode(host, images(64, 64)).references == 1


def test_a_bad_image_on_a_growing_socket_is_told_by_its_name(host):
    with pytest.raises(Refused, match="image_2 has 2 channels") as refused:
        encode(host, images(64, 64), image_2=torch.zeros(1, 8, 8, 2))
    assert refused.value.own


def test_the_sockets_of_masks_keep_the_names_that_saved_graphs_have(host):
    """Those that grow would be called masks.mask_1 and so on."""
    schema = host.classes["MMDiffConstraintMasks"].define_schema()
    named = [item.id for item in schema.inputs if item.id.startswith("mask")]
    assert named == [f"mask_{i}" for i in range(1, 7)]
