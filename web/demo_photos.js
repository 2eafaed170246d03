/** Bundled workflows open with their images: a demo photo that a workflow names and that is missing
 * in ComfyUI's input folder is uploaded to it. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { readAll } from "./box_editor.js";
import { everyNode } from "./last_shown.js";
import { widgetOf } from "./subject_names.js";

const PHOTOS = [
  "astronaut_eileen_collins.jpg",
  "astronaut_eileen_collins_close.jpg",
  "astronaut_eileen_collins_mirrored.jpg",
  "chelsea_cat.jpg",
  "grace_hopper.jpg",
  "rocket_launch_pad.jpg",
];
/** Folders that a workflow names, with their photos. @type {Record<string, string[]>} */
const FOLDERS = { "mm-diff-eileen": PHOTOS.filter((name) => name.startsWith("astronaut")) };

/** The pictures that a widget offers; undefined where it does not say.
 * @param {any} widget
 * @returns {string[] | undefined} */
const offered = (widget) => (Array.isArray(widget?.options?.values) ? widget.options.values : undefined);

/** Upload a photo; the name that the server gave it (another one where a different picture has that name).
 * @param {string} name
 * @param {string} [folder] of the input folder
 * @returns {Promise<string>} */
async function upload(name, folder = "") {
  const found = await fetch(new URL(`./photos/${name}`, import.meta.url));
  if (!found.ok) throw new Error(`${found.status} ${found.statusText}`); // else its error page would become the picture
  const photo = await found.blob();
  const form = new FormData();
  form.append("image", new File([photo], name, { type: photo.type }));
  form.append("subfolder", folder);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body: form });
  if (answer.status !== 200) throw new Error(`${answer.status} ${answer.statusText}`);
  return (await answer.json()).name;
}

/** Offer a value in a widget, and choose it.
 * @param {any} widget
 * @param {string} value */
function choose(widget, value) {
  const values = offered(widget);
  if (values && !values.includes(value)) values.push(value);
  widget.value = value;
  widget.callback?.(value); // shows it on the node
}

/** Folders of photos that are named and missing. */
async function fillFolders() {
  const loaders = everyNode().filter((node) => node.comfyClass === "LoadImageDataSetFromFolder");
  for (const widget of loaders.map((node) => widgetOf(node, "folder"))) {
    const folder = String(widget?.value ?? "");
    if (!(folder in FOLDERS) || offered(widget)?.includes(folder) !== false) continue;
    try {
      for (const name of FOLDERS[folder]) await upload(name, folder);
      choose(widget, folder);
    } catch (error) {
      console.warn(`MM-Diff: the demo photos of ${folder} could not be uploaded to the input folder: ${error}`);
    }
  }
}

app.registerExtension({
  name: "mmdiff.photos",
  async afterConfigureGraph() {
    await fillFolders();
    const loaders = everyNode().filter((node) => node.comfyClass === "LoadImage");
    /** @type {Map<string, any[]>} */
    const wanted = new Map();
    for (const widget of loaders.map((node) => widgetOf(node, "image"))) {
      const name = String(widget?.value ?? "");
      if (PHOTOS.includes(name) && offered(widget)?.includes(name) === false) wanted.set(name, [...(wanted.get(name) ?? []), widget]);
    }
    for (const [name, widgets] of wanted) {
      try {
        const given = await upload(name);
        for (const widget of widgets) choose(widget, given);
      } catch (error) {
        console.warn(`MM-Diff: the demo photo ${name} could not be uploaded to the input folder: ${error}`);
      }
    }
    if (wanted.size) readAll(true); // boxes show them too
  },
});
