"""Graphs that are built in the page; `window.nodes` holds their nodes by short names."""

from __future__ import annotations

# An empty graph, and how nodes are put there: `window.nodes` holds them by short names.
EMPTY = """
  app.graph.clear();
  // new numbers each time, after a reload too: to Nodes 2.0 a number that it knows is the node
  // that had it before
  app.graph.state.lastNodeId = window.lastId = (window.lastId ?? Date.now() % 1e9) + 100;
  const nodes = window.nodes = {};
  const add = (name, kind, x, y, values = {}) => {
    const node = nodes[name] = LiteGraph.createNode(kind);
    node.pos = [x, y];
    for (const [key, value] of Object.entries(values)) {
      const widget = node.widgets.find((w) => w.name === key);
      const names = node.widgets.map((w) => w.name);
      if (!widget) throw new Error(`${kind} has no widget ${key}: ${names}`);
      widget.value = value;
    }
    app.graph.add(node);
  };
  const link = (from, out, to, into) => {
    const number = nodes[to].inputs.findIndex((i) => i.name === into);
    return nodes[from].connect(out, nodes[to], number);
  };
"""

# The small world's two subjects with regions, built in the page.
BUILD = (
    """async () => {"""
    + EMPTY
    + """
  add("world", "MMDiffSmallWorldLoader", -1200, 0);
  for (const [i, [name, hue]] of [["Violet", 0.74], ["Teal", 0.5]].entries()) {
    const look = { kind: "ghost", first_colour: hue };
    add(`sprite${i}`, "MMDiffSmallWorldSprite", -900, i * 500, look);
    add(`subject${i}`, "MMDiffSubjectEncoder", -500, i * 500, { name });
    link("world", 4, `subject${i}`, "mmdiff");
    link("world", 3, `subject${i}`, "clip_vision");
    link(`sprite${i}`, 0, `subject${i}`, "image");
  }
  add("masks", "MMDiffConstraintMasks", 0, 0, { width: 128, height: 96 });
  const text = "a ghost<|subj|> and a ghost<|subj|> at night";
  add("text", "MMDiffTextEncode", 420, 0, { text, negative: "" });
  add("apply", "MMDiffApplyAttention", 900, 0);
  add("latent", "EmptyLatentImage", 900, 260, { width: 128, height: 128 });
  add("sample", "KSampler", 1300, 0, { steps: 4, cfg: 3, sampler_name: "dpmpp_2m", seed: 1 });
  add("decode", "VAEDecode", 1300, 400);
  add("show", "PreviewImage", 1700, 0);
  link("subject0", 0, "subject1", "subjects");
  link("subject1", 0, "masks", "subjects");
  link("masks", 0, "text", "subjects");
  link("world", 1, "text", "clip");
  link("world", 4, "text", "mmdiff");
  link("world", 0, "apply", "model");
  link("world", 4, "apply", "mmdiff");
  link("apply", 0, "sample", "model");
  link("text", 0, "sample", "positive");
  link("text", 1, "sample", "negative");
  link("latent", 0, "sample", "latent_image");
  link("sample", 0, "decode", "samples");
  link("world", 2, "decode", "vae");
  link("decode", 0, "show", "images");
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [200, 130];
  app.canvas.setDirty(true, true);
  const tracker = app.extensionManager.workflow.activeWorkflow?.changeTracker;
  // the newest frontend's name, the older one's
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}"""
)

FIND = "((kind) => app.graph.nodes.find((n) => n.comfyClass === kind))"

# A portrait subject from pictures of the input folder; "discs" finds a face wherever one was drawn.
PORTRAIT = (
    """async (names) => {"""
    + EMPTY
    + """
  add("tiny", "MMDiffLoadTinyReferenceModel", -900, 0);
  add("mmdiff", "MMDiffLoad", -900, 250, { checkpoint: "tiny-portrait" });
  add("faces", "MMDiffLoadFaceAnalysis", -900, 450, { model: "discs", device: "cpu" });
  add("ann", "MMDiffSubjectEncoder", 0, 0, { name: "Ann" });
  add("ben", "MMDiffSubjectEncoder", 380, 0, { name: "Ben" });
  add("masks", "MMDiffConstraintMasks", 760, 0, { width: 128, height: 96 });
  add("show", "PreviewImage", 760, 720);
  let last;
  for (const [i, name] of names.entries()) {
    add(`load${i}`, "LoadImage", -500 + 60 * i, 350 * i, { image: name });
    if (last) {
      add(`batch${i}`, "ImageBatch", -200, 300 * i);
      link(last, 0, `batch${i}`, "image1");
      link(`load${i}`, 0, `batch${i}`, "image2");
    }
    last = last ? `batch${i}` : `load${i}`;
  }
  for (const subject of ["ann", "ben"]) {
    link("mmdiff", 0, subject, "mmdiff");
    link("tiny", 3, subject, "clip_vision");
    link("faces", 0, subject, "faces");
  }
  link(last, 0, "ann", "image");
  link("load0", 0, "ben", "image");
  link("ann", 0, "ben", "subjects");
  link("ben", 0, "masks", "subjects");
  link("masks", 1, "show", "images");
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [200, 130];
  // as a graph is that was loaded, for the page's undo
  const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
  await app.loadGraphData(saved, true, false, app.extensionManager.workflow.activeWorkflow);
  for (const [name, { id }] of Object.entries(nodes)) nodes[name] = app.graph.getNodeById(id);
  await new Promise((then) => setTimeout(then, 500));
  const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
  (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
}"""
)
