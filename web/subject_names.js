/** Whose subjects reach a node, read from the graph before it ever ran. No page: harmless wherever it is loaded. */

const PASSES_ON = ["MMDiffConstraintMasks", "MMDiffSubjectWeights", "MMDiffSaveSubject", "MMDiffFindRegions"];
const BYPASSED = 4;
const MUTED = 2;

/** @param {any} node
 * @param {string} name */
export const widgetOf = (node, name) => node.widgets?.find((/** @type {any} */ w) => w.name === name);

/** The node behind an input, through reroutes; undefined where nothing is connected or the link comes from outside a subgraph.
 * @param {any} node
 * @param {string} input */
function behind(node, input) {
  const slot = node.inputs?.findIndex((/** @type {any} */ i) => i.name === input) ?? -1;
  const source = slot < 0 || !node.graph ? null : node.getInputNode?.(slot); // newer frontends throw for a node that is in no graph yet
  return source?.type === "Reroute" ? behind(source, source.inputs?.[0]?.name) : source ?? undefined;
}

/** @param {any} node */
function fileName(node) {
  return String(widgetOf(node, "file")?.value ?? "").replace(/^.*[\\/]/, "").replace(/\.safetensors$/, "");
}

/** Names of the subjects that come into a node, in their order.
 * @param {any} node
 * @returns {string[]} */
export function namesBefore(node, input = "subjects", depth = 0) {
  const source = behind(node, input);
  if (!source || source.mode === MUTED || depth > 50) return [];
  const before = (/** @type {string} */ name = "subjects") => namesBefore(source, name, depth + 1);
  const name = String(widgetOf(source, "name")?.value ?? "").trim();
  if (source.mode === BYPASSED || PASSES_ON.includes(source.comfyClass)) return before();
  if (source.comfyClass === "MMDiffSubjectEncoder") return [...before(), name];
  if (source.comfyClass === "MMDiffLoadSubject") return [...before(), name || fileName(source)];
  if (source.comfyClass === "MMDiffMixSubjects") return [...before("others"), name];
  return [];
}
