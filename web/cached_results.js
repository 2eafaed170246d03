/** Shows what nodes had shown when the server answers them from its cache, as after a reload of the
 * page. ComfyUI from 0.19 on sends it by itself; older ones are asked (mmdiff_core/host/shown.py). */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { readAll } from "./box_editor.js";
import { nodeOf } from "./last_shown.js";

/** Classes of ours whose cached results this server does not send. @type {Set<string>} */
const unsent = new Set();

/** The run that the page hears of, as only the latest one is shown. @type {string | undefined} */
let current;

/** The id of the open workflow. */
const openWorkflow = () => (app.graph?.rootGraph ?? app.graph)?.id;

/** @param {{nodes: string[], prompt_id: string}} cached */
async function showAgain({ nodes, prompt_id }) {
  current = prompt_id;
  const wanted = nodes.filter((id) => unsent.has(nodeOf(id)?.comfyClass)).map((id) => ["node", id]);
  if (!wanted.length) return;
  const answer = await api.fetchApi(`/mmdiff/shown/${encodeURIComponent(prompt_id)}?${new URLSearchParams(wanted)}`);
  if (!answer.ok) return;
  const { workflow, shown } = await answer.json();
  if (current !== prompt_id) return; // the next run has begun, and shows its own
  if (workflow && workflow !== openWorkflow()) return; // the page has another workflow open by now
  for (const [node, output] of Object.entries(shown)) {
    if (unsent.has(nodeOf(node)?.comfyClass)) api.dispatchEvent(new CustomEvent("executed", { detail: { node, display_node: node, output, prompt_id } }));
  }
  readAll(); // boxes show their subjects
  app.graph.setDirtyCanvas(true, true); // images are drawn with the next frame
}

app.registerExtension({
  name: "mmdiff.cached",
  beforeRegisterNodeDef(_, { name, output_node, has_intermediate_output }) {
    if (name.startsWith("MMDiff") && !output_node && has_intermediate_output === undefined) unsent.add(name);
  },
  setup() {
    api.addEventListener("execution_start", ({ detail }) => {
      current = detail.prompt_id;
    });
    api.addEventListener("execution_cached", ({ detail }) => {
      showAgain(detail).catch((error) => console.warn(`MM-Diff: the results of cached nodes could not be read: ${error}`));
    });
  },
});
