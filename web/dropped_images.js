/** An image dropped on an MM-Diff Subject Encoder becomes its Load Image node. Newer pages make such a
 * node of an image that is dropped anywhere; it is connected to the nearest encoder without an image. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { isLinked, isUsed, widgetOf } from "./subject_names.js";

const SOON = 10_000; // ms: uploading comes between the drop and the node
const GAP = 40;

/** When, and where on the canvas, images were dropped last. */
const last = { time: -SOON, point: [0, 0] };

/** @param {DragEvent} event */
const imagesOf = (event) => [...(event.dataTransfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));

/** @param {DragEvent} event */
function remember(event) {
  if (!imagesOf(event).length) return;
  last.time = performance.now();
  const area = app.canvas.canvas.getBoundingClientRect();
  const { scale, offset } = app.canvas.ds;
  last.point = [(event.clientX - area.x) / scale - offset[0], (event.clientY - area.y) / scale - offset[1]];
}

/** @param {any} node
 * @returns {number} of its input for images */
const slotOf = (node) => node.inputs?.findIndex((/** @type {any} */ input) => input.name === "image") ?? -1;

/** How far a point is from a node; 0 on it.
 * @param {any} node
 * @param {number[]} point */
function distance({ pos, size }, [x, y]) {
  const beyond = (/** @type {number} */ at, /** @type {number} */ from, /** @type {number} */ to) => Math.max(from - at, 0, at - to);
  return Math.hypot(beyond(x, pos[0], pos[0] + size[0]), beyond(y, pos[1] - LiteGraph.NODE_TITLE_HEIGHT, pos[1] + size[1]));
}

/** @param {any} loader a Load Image node that a drop has made */
function connect(loader) {
  if (!loader.graph || isUsed(loader)) return;
  const encoders = loader.graph.nodes.filter(
    (/** @type {any} */ node) => node.comfyClass === "MMDiffSubjectEncoder" && slotOf(node) >= 0 && !isLinked(node, "image"),
  );
  encoders.sort((/** @type {any} */ a, /** @type {any} */ b) => distance(a, last.point) - distance(b, last.point));
  const [nearest] = encoders;
  if (!nearest) return;
  loader.connect(0, nearest, slotOf(nearest));
  app.canvas.setDirty(true, true);
}

/** A Load Image node with a file, beside an encoder and connected to it.
 * @param {any} encoder
 * @param {File} file */
async function loadFor(encoder, file) {
  const form = new FormData();
  form.append("image", file);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body: form });
  if (answer.status !== 200) throw new Error(`${file.name} could not be uploaded: ${answer.status} ${answer.statusText}`);
  const { name } = await answer.json();
  const loader = /** @type {any} */ (LiteGraph.createNode("LoadImage"));
  encoder.graph.add(loader);
  loader.pos = [encoder.pos[0] - loader.size[0] - GAP, encoder.pos[1]];
  const widget = widgetOf(loader, "image");
  if (Array.isArray(widget.options.values) && !widget.options.values.includes(name)) widget.options.values.push(name);
  widget.value = name;
  widget.callback?.(name); // shows it on the node
  loader.connect(0, encoder, slotOf(encoder));
}

app.registerExtension({
  name: "mmdiff.dropped_images",
  setup() {
    window.addEventListener("drop", remember, true);
  },
  nodeCreated(node) {
    if (node.comfyClass === "MMDiffSubjectEncoder") {
      node.onDragOver = (/** @type {DragEvent} */ event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
      node.onDragDrop = async (/** @type {DragEvent} */ event) => {
        const [image] = imagesOf(event);
        if (!image) return false;
        last.time = -SOON; // no other encoder gets it
        await loadFor(node, image);
        return true;
      };
    }
    if (node.comfyClass !== "LoadImage" || performance.now() - last.time > SOON) return;
    setTimeout(() => connect(node), 100); // the page puts it into the graph, and in its place, first
  },
});
