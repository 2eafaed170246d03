"""The encoder's sockets for more images on a host that has sockets that grow, as the page draws
them.
"""

from __future__ import annotations

from support.page import run_and_wait, shot

SOCKETS = """() => app.graph.getNodeById(nodes.subject0.id).inputs
  .map((input) => input.name).filter((name) => name.startsWith("more"))"""
CONNECT = """(name) => {
  const into = nodes.subject0.inputs.findIndex((input) => input.name === name);
  nodes.sprite1.connect(0, nodes.subject0, into);
}"""
SENT = """async () => {
  const prompt = (await app.graphToPrompt()).output;
  return Object.keys(prompt[nodes.subject0.id].inputs).filter((name) => name.startsWith("more"));
}"""
AGAIN = """async () => {
  await app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())));
  nodes.subject0 = app.graph.getNodeById(nodes.subject0.id);
}"""


def test_sockets_for_more_images_appear_one_by_one_are_run_and_are_there_after_loading(
    page, page_server
):
    assert page.evaluate(SOCKETS) == ["more.image_2"]
    page.evaluate(CONNECT, "more.image_2")
    page.wait_for_function(f"({SOCKETS})().length === 2")
    assert page.evaluate(SENT) == ["more.image_2"]
    page.evaluate("() => { app.canvas.ds.offset = [700, 130]; app.canvas.setDirty(true, true); }")
    page.wait_for_timeout(300)
    shot(page, "more_images")
    run_and_wait(page, page_server)
    page.evaluate(AGAIN)
    page.wait_for_timeout(300)
    assert page.evaluate(SENT) == ["more.image_2"]
    assert page.evaluate(SOCKETS) == ["more.image_2", "more.image_3"]
