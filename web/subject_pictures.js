/** An image for each subject: what its node showed last or, before the first run, the reference
 * image that it will encode. */
import { addressOf, lastShown } from "./last_shown.js";
import { behind, BYPASSED, MUTED, widgetOf } from "./subject_names.js";

/** "faces/ann.png [output]", as LoadImage writes it.
 * @param {string} text
 * @returns {import("./last_shown.js").PictureFile | undefined} */
function fileOf(text) {
  const [, subfolder = "", filename, type = "input"] = text.match(/^(?:(.*)\/)?([^/]+?)(?: \[(\w+)\])?$/) ?? [];
  return filename ? { filename, subfolder, type } : undefined;
}

/** The first picture that comes into an input, where it can be known without a run.
 * @param {any} node
 * @param {string} input
 * @returns {import("./last_shown.js").PictureFile | undefined} */
function pictureBehind(node, input, depth = 0) {
  const source = behind(node, input);
  if (!source || source.mode === MUTED || depth > 50) return undefined;
  if (source.mode === BYPASSED) {
    const passed = source.inputs?.find((/** @type {any} */ i) => i.type === "IMAGE");
    return passed && pictureBehind(source, passed.name, depth + 1);
  }
  if (source.comfyClass === "LoadImage") return fileOf(String(widgetOf(source, "image")?.value ?? ""));
  if (source.comfyClass === "ImageBatch") return pictureBehind(source, "image1", depth + 1); // the first reference speaks for the subject
  return lastShown(source)?.images?.[0];
}

/** The address of a picture of the subject that a node makes; undefined where there is none yet.
 * @param {any} node */
export function pictureOf(node) {
  const file = lastShown(node)?.images?.[0] ?? (node.comfyClass === "MMDiffSubjectEncoder" ? pictureBehind(node, "image") : undefined);
  return file && addressOf(file);
}
