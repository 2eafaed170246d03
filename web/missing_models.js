/** Lets ComfyUI's own list of missing models name the released checkpoint and the face models too. The
 * list looks for single files; these two are folders, so that it would never ask for them.
 *
 * The server says with each combo which entries are there, which files an entry has, and where it
 * can be had (`needs` in nodes/inputs.py). Older frontends read `models` of the graph that is opened;
 * newer ones look at combos whose value is a file's name, which a hidden one gives them here. */
import { app } from "../../scripts/app.js";
import { after } from "./elements.js";
import { widgetOf } from "./subject_names.js";

/** @typedef {{installed: string[], folder: string, pattern: string, pages: Record<string, string>}} Needs */

const WIDGETS = { MMDiffLoad: "checkpoint", MMDiffConvert: "checkpoint", MMDiffLoadFaceAnalysis: "model" };
const FILE = /\.(safetensors|sft)$/i; // of these the page takes care itself
const PLACEHOLDER = /^\(/; // "(nothing in models/mmdiff yet)"

/** By class of node, as the server said last. @type {Map<string, Needs>} */
const needs = new Map();

/** @param {string} kind
 * @param {any} definition as in /object_info */
function remember(kind, definition) {
  const found = definition?.input?.required?.[WIDGETS[kind]]?.[1]?.mmdiff_needs;
  if (found) needs.set(kind, found);
}

/** The files of an entry of this loader, as a pattern below its model folder; "" where it is a single file.
 * @param {string} kind
 * @param {unknown} value */
function filesOf(kind, value) {
  const wanted = needs.get(kind);
  const plain = typeof value === "string" && value && !FILE.test(value) && !PLACEHOLDER.test(value);
  return wanted && plain ? wanted.pattern.replace("{}", value) : "";
}

/** @param {string} kind
 * @param {unknown} value */
const isThere = (kind, value) => needs.get(kind)?.installed.includes(String(value)) ?? true;

/** The missing entries of a graph that is about to be opened, as its `models` would name them.
 * @param {any} graph */
function missingIn(graph) {
  const nodes = [graph, ...(graph.definitions?.subgraphs ?? [])].flatMap((each) => each.nodes ?? []);
  return nodes.flatMap(({ type, widgets_values: values }) => {
    const [value] = Array.isArray(values) ? values : Object.values(values ?? {});
    const url = needs.get(type)?.pages[value];
    if (!url || isThere(type, value)) return [];
    return [{ name: filesOf(type, value), url, directory: needs.get(type).folder }];
  });
}

app.registerExtension({
  name: "mmdiff.missing_models",
  beforeRegisterNodeDef(_, definition) {
    if (definition.name in WIDGETS) remember(definition.name, definition);
  },
  refreshComboInNodes(definitions) {
    for (const kind of Object.keys(WIDGETS)) remember(kind, definitions?.[kind]);
  },
  beforeConfigureGraph(graph) {
    const missing = missingIn(graph);
    if (missing.length) graph.models = [...(graph.models ?? []), ...missing];
  },
  nodeCreated(node) {
    const kind = node.comfyClass;
    const chosen = kind in WIDGETS && widgetOf(node, WIDGETS[kind]);
    if (!chosen) return;
    const files = () => filesOf(kind, chosen.value);
    const values = () => (isThere(kind, chosen.value) ? [files()] : []);
    const widget = node.addWidget("combo", "files", "", () => {}, { values, hidden: true, serialize: false });
    Object.assign(widget, { hidden: true, serialize: false, computeSize: () => [0, -4] });
    Object.defineProperty(widget, "value", { get: files, set() {}, configurable: true });
    after(chosen, "callback", () => node.onWidgetChanged?.("files", files(), undefined, widget)); // takes it off the list
  },
});
