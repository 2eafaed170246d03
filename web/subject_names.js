/** Names of the subjects that reach a node, read from the graph before its first run. No side
 * effects on import. */

const PASSES_ON = ["MMDiffConstraintMasks", "MMDiffSubjectWeights", "MMDiffSaveSubject", "MMDiffFindRegions"];
export const BYPASSED = 4;
export const MUTED = 2;

/** @typedef {{name: string, node: any}} KnownSubject  and the node that makes it */

/** @param {any} node
 * @param {string} name */
export const widgetOf = (node, name) => node.widgets?.find((/** @type {any} */ w) => w.name === name);

/** The inside of a subgraph has its inputs at this node number. */
const SUBGRAPH_INPUTS = -10;

/** The nodes of a graph's whole workflow.
 * @param {any} graph */
function everyNodeOf(graph) {
  const root = graph.rootGraph ?? graph;
  return [root, ...(root.subgraphs?.values() ?? [])].flatMap((g) => g.nodes);
}

/** Reroutes and subgraphs on the way to a node; more of them is a circle. */
const MOST_STEPS = 200;

/** The link into an input of a node, from outside where that is a subgraph: `getInputLink` of such a node is about
 * its inside, and `input.link` is deprecated.
 * @param {any} node
 * @param {number} slot */
function linkInto(node, slot) {
  return linksAround(node).find((link) => String(link.target_id) === String(node.id) && link.target_slot === slot);
}

/** The links of the graph that a node is in.
 * @param {any} node
 * @returns {any[]} */
const linksAround = (node) => [...(node?.graph?.links?.values?.() ?? [])];

/** Whether a link comes out of a node; not asked of its outputs, as newer frontends warn of their `links`.
 * @param {any} node */
export const isUsed = (node) => linksAround(node).some((link) => String(link.origin_id) === String(node.id));

/** The node that a link comes from, through reroutes and in and out of subgraphs; undefined for a circle.
 * @param {any} graph the link's
 * @param {any} link */
function originOf(graph, link, step = 0) {
  if (!link || step > MOST_STEPS) return undefined;
  if (Number(link.origin_id) === SUBGRAPH_INPUTS) { // newer frontends have it as text
    const outside = everyNodeOf(graph).find((node) => node.subgraph === graph);
    return originOf(outside?.graph, linkInto(outside, link.origin_slot), step + 1);
  }
  const source = graph.getNodeById(link.origin_id);
  if (source?.subgraph) {
    const inside = source.subgraph.getLink(source.subgraph.outputs[link.origin_slot]?.linkIds?.[0]);
    return originOf(source.subgraph, inside, step + 1);
  }
  return source?.type === "Reroute" ? originOf(graph, linkInto(source, 0), step + 1) : source ?? undefined;
}

/** The node behind an input, through reroutes and in and out of subgraphs; undefined where nothing is connected.
 * @param {any} node
 * @param {string} input */
export function behind(node, input) {
  const slot = node.inputs?.findIndex((/** @type {any} */ i) => i.name === input) ?? -1;
  return slot < 0 ? undefined : originOf(node.graph, linkInto(node, slot));
}

/** @param {any} node */
function fileName(node) {
  return String(widgetOf(node, "file")?.value ?? "").replace(/^.*[\\/]/, "").replace(/\.safetensors$/, "");
}

/** Whether a link comes into an input; not asked of the input itself, as newer frontends warn of its `link`.
 * @param {any} node
 * @param {string} input */
export function isLinked(node, input) {
  return linkInto(node, node.inputs?.findIndex((/** @type {any} */ i) => i.name === input) ?? -1) !== undefined;
}

/** The subjects that come into a node, in their order, and whether these are all: a node of another pack may bring more.
 * @param {any} node
 * @returns {{subjects: KnownSubject[], all: boolean}} */
export function incoming(node, input = "subjects", depth = 0) {
  const source = behind(node, input);
  if (!source || source.mode === MUTED || depth > 50) return { subjects: [], all: source?.mode === MUTED || !isLinked(node, input) };
  const before = (/** @type {string} */ name = "subjects") => incoming(source, name, depth + 1);
  const after = ({ subjects, all }, /** @type {string} */ name) => ({ subjects: [...subjects, { name, node: source }], all });
  const name = String(widgetOf(source, "name")?.value ?? "").trim();
  if (source.mode === BYPASSED || PASSES_ON.includes(source.comfyClass)) return before();
  if (source.comfyClass === "MMDiffSubjectEncoder") return after(before(), name);
  if (source.comfyClass === "MMDiffLoadSubject") return after(before(), name || fileName(source));
  if (source.comfyClass === "MMDiffMixSubjects") return after(before("others"), name);
  return { subjects: [], all: false };
}

/** The subjects that come into a node, as far as they are known.
 * @param {any} node
 * @returns {KnownSubject[]} */
export const subjectsBefore = (node) => incoming(node).subjects;

/** Names of the subjects that come into a node, in their order.
 * @param {any} node
 * @returns {string[]} */
export const namesBefore = (node) => subjectsBefore(node).map(({ name }) => name);
