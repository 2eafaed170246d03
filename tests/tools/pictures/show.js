// Bring a node to a fixed place at its full size; its area on the page.
async ([name, size]) => {
  const node = nodes[name];
  const least = node.computeSize();
  if (size) node.setSize([Math.max(size[0], least[0]), Math.max(size[1], least[1])]);
  app.canvas.deselectAll();
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [400 - node.pos[0], 160 - node.pos[1]];
  app.canvas.setDirty(true, true);
  await new Promise((r) => setTimeout(r, 600));
  const area = app.canvas.canvas.getBoundingClientRect();
  const title = LiteGraph.NODE_TITLE_HEIGHT;
  const top = area.y + 160 - title;
  return { x: area.x + 400, y: top, width: node.size[0], height: node.size[1] + title };
}
