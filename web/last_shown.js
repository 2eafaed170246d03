/** What each node showed at its last run, and the addresses of images on the server. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

/** @typedef {{filename: string, subfolder?: string, type?: string}} PictureFile */

/** A node's last `ui` output as the page keeps it; it outlives the node when undo makes it anew.
 * @param {any} node
 * @returns {Record<string, any> | undefined} */
export function lastShown(node) {
  const inside = node.graph?.isRootGraph === false; // of a subgraph
  return app.nodeOutputs?.[inside ? `${node.graph.id}:${node.id}` : String(node.id)];
}

/** Where the server gives a picture out.
 * @param {PictureFile} file */
export function addressOf({ filename, subfolder = "", type = "input" }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}${app.getPreviewFormatParam?.() ?? ""}`);
}

/** The nodes of the open graph and of its subgraphs.
 * @returns {any[]} */
export function everyNode() {
  const root = app.graph?.rootGraph ?? app.graph;
  return [root, ...(root?.subgraphs?.values() ?? [])].flatMap((graph) => graph?.nodes ?? []);
}

/** The node with an execution id: "12", or "3:12" for node 12 in the subgraph of node 3.
 * @param {string} id
 * @returns {any} */
export function nodeOf(id) {
  let graph = app.graph?.rootGraph ?? app.graph;
  const path = String(id).split(":");
  for (const part of path.slice(0, -1)) graph = graph?.getNodeById(Number(part))?.subgraph;
  return graph?.getNodeById(Number(path.at(-1)));
}
