/** Lets ComfyUI's own list of missing models name the released checkpoint and the face models too. The
 * list looks for single files; these two are folders, so that it would never ask for them.
 *
 * The server says with each such combo which entries are there, which files an entry has, and where it
 * can be had (`of_folders` in nodes/inputs.py). Older frontends read `models` of the graph that is
 * opened; newer ones look at combos whose value is a file's name, which a hidden one gives them here. */
import { app } from "../../scripts/app.js";
import { after } from "./elements.js";
import { widgetOf } from "./subject_names.js";

/** @typedef {{installed: string[], folder: string, pattern: string, pages: Record<string, string>}} Needs */

const FILE = /\.(safetensors|sft)$/i; // of these the page takes care itself
const PLACEHOLDER = /^\(/; // "(nothing in models/mmdiff yet)"

/** Class of node -> its inputs -> what the server said last. @type {Map<string, Map<string, Needs>>} */
const needs = new Map();

/** @param {string} kind
 * @param {any} definition as in /object_info */
function remember(kind, definition) {
  const inputs = Object.entries({ ...definition?.input?.required, ...definition?.input?.optional });
  const found = inputs.flatMap(([name, spec]) => (spec?.[1]?.mmdiff_needs ? [[name, spec[1].mmdiff_needs]] : []));
  if (found.length) needs.set(kind, new Map(found));
}

/** The files of an entry, as a pattern below its model folder; "" where the entry is a single file.
 * @param {Needs | undefined} wanted
 * @param {unknown} entry */
function filesOf(wanted, entry) {
  const folder = typeof entry === "string" && entry && !FILE.test(entry) && !PLACEHOLDER.test(entry);
  return wanted && folder ? wanted.pattern.replace("{}", entry) : "";
}

/** The missing entries of a graph that is about to be opened, as its `models` would name them.
 * @param {any} graph */
function missingIn(graph) {
  const nodes = [graph, ...(graph.definitions?.subgraphs ?? [])].flatMap((each) => each.nodes ?? []);
  return nodes.flatMap(({ type, widgets_values: values }) => {
    const chosen = Object.values(values ?? {});
    return [...(needs.get(type)?.values() ?? [])].flatMap((wanted) =>
      Object.entries(wanted.pages)
        .filter(([entry]) => chosen.includes(entry) && !wanted.installed.includes(entry))
        .map(([entry, url]) => ({ name: filesOf(wanted, entry), url, directory: wanted.folder })),
    );
  });
}

/** A hidden combo whose value is the files of another one's entry, and which offers them if they are there.
 * @param {any} node
 * @param {string} input */
function addFiles(node, input) {
  const chosen = widgetOf(node, input);
  if (!chosen) return;
  const wanted = () => needs.get(node.comfyClass)?.get(input);
  const files = () => filesOf(wanted(), chosen.value);
  const values = () => (wanted()?.installed.includes(chosen.value) ? [files()] : []);
  const name = `${input}_files`;
  const widget = node.addWidget("combo", name, "", () => {}, { values, hidden: true, serialize: false });
  Object.assign(widget, { hidden: true, serialize: false, computeSize: () => [0, -4] });
  Object.defineProperty(widget, "value", { get: files, set() {}, configurable: true });
  after(chosen, "callback", () => node.onWidgetChanged?.(name, files(), undefined, widget)); // takes it off the list
}

app.registerExtension({
  name: "mmdiff.missing_models",
  beforeRegisterNodeDef(_, definition) {
    remember(definition.name, definition);
  },
  refreshComboInNodes(definitions) {
    for (const kind of needs.keys()) remember(kind, definitions?.[kind]);
  },
  beforeConfigureGraph(graph) {
    const missing = missingIn(graph);
    if (missing.length) graph.models = [...(graph.models ?? []), ...missing];
  },
  nodeCreated(node) {
    for (const input of needs.get(node.comfyClass)?.keys() ?? []) addFiles(node, input);
  },
});
