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

/** The pictures that a widget offers; undefined where it does not say.
 * @param {any} widget
 * @returns {string[] | undefined} */
const offered = (widget) => (Array.isArray(widget?.options?.values) ? widget.options.values : undefined);

/** Upload a photo; the name that the server gave it (another one where a different picture has that name).
 * @param {string} name
 * @returns {Promise<string>} */
async function upload(name) {
  const found = await fetch(new URL(`./photos/${name}`, import.meta.url));
  if (!found.ok) throw new Error(`${found.status} ${found.statusText}`); // else its error page would become the picture
  const photo = await found.blob();
  const form = new FormData();
  form.append("image", new File([photo], name, { type: photo.type }));
  const answer = await api.fetchApi("/upload/image", { method: "POST", body: form });
  if (answer.status !== 200) throw new Error(`${answer.status} ${answer.statusText}`);
  return (await answer.json()).name;
}

app.registerExtension({
  name: "mmdiff.photos",
  async afterConfigureGraph() {
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
        for (const widget of widgets) {
          const values = offered(widget);
          if (values && !values.includes(given)) values.push(given);
          widget.value = given;
          widget.callback?.(given); // shows it on the node
        }
      } catch (error) {
        console.warn(`MM-Diff: the demo photo ${name} could not be uploaded to the input folder: ${error}`);
      }
    }
    if (wanted.size) readAll(true); // boxes show them too
  },
});
