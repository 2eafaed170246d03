/** Whose subjects reach a node, read from the graph before it ever ran. No page: harmless wherever it is loaded. */

const PASSES_ON = ["MMDiffConstraintMasks", "MMDiffSubjectWeights", "MMDiffSaveSubject", "MMDiffFindRegions"];
export const BYPASSED = 4;
export const MUTED = 2;

/** @typedef {{name: string, node: any}} KnownSubject  and the node that makes it */

/** @param {any} node
 * @param {string} name */
export const widgetOf = (node, name) => node.widgets?.find((/** @type {any} */ w) => w.name === name);

/** The node behind an input, through reroutes; undefined where nothing is connected or the link comes from outside a subgraph.
 * @param {any} node
 * @param {string} input */
export function behind(node, input) {
  const slot = node.inputs?.findIndex((/** @type {any} */ i) => i.name === input) ?? -1;
  const source = slot < 0 || !node.graph ? null : node.getInputNode?.(slot); // newer frontends throw for a node that is in no graph yet
  return source?.type === "Reroute" ? behind(source, source.inputs?.[0]?.name) : source ?? undefined;
}

/** @param {any} node */
function fileName(node) {
  return String(widgetOf(node, "file")?.value ?? "").replace(/^.*[\\/]/, "").replace(/\.safetensors$/, "");
}

/** The subjects that come into a node, in their order.
 * @param {any} node
 * @returns {KnownSubject[]} */
export function subjectsBefore(node, input = "subjects", depth = 0) {
  const source = behind(node, input);
  if (!source || source.mode === MUTED || depth > 50) return [];
  const before = (/** @type {string} */ name = "subjects") => subjectsBefore(source, name, depth + 1);
  const name = String(widgetOf(source, "name")?.value ?? "").trim();
  if (source.mode === BYPASSED || PASSES_ON.includes(source.comfyClass)) return before();
  if (source.comfyClass === "MMDiffSubjectEncoder") return [...before(), { name, node: source }];
  if (source.comfyClass === "MMDiffLoadSubject") return [...before(), { name: name || fileName(source), node: source }];
  if (source.comfyClass === "MMDiffMixSubjects") return [...before("others"), { name, node: source }];
  return [];
}

/** Names of the subjects that come into a node, in their order.
 * @param {any} node
 * @returns {string[]} */
export const namesBefore = (node) => subjectsBefore(node).map(({ name }) => name);
