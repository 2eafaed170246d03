/** Size of the image, read from the graph before its first run. No side effects on import. */
import { behind, widgetOf } from "./subject_names.js";

/** A number of a node: from the node that is connected in its place, else its own.
 * @param {any} node
 * @param {string} name */
function numberOf(node, name) {
  const source = behind(node, name);
  const widget = source ? widgetOf(source, "value") ?? widgetOf(source, name) : widgetOf(node, name);
  return Number(widget?.value) || 0;
}

/** Width and height in pixels: of the latent that is connected, where its node says them, else those typed on the node itself.
 * @param {any} node
 * @returns {[number, number]} */
export function pictureSize(node) {
  let latent = behind(node, "latent");
  for (let depth = 0; latent && depth < 50; depth += 1) {
    const size = /** @type {[number, number]} */ (["width", "height"].map((name) => numberOf(latent, name)));
    if (size[0] && size[1]) return size;
    latent = behind(latent, latent.inputs?.find((/** @type {any} */ i) => i.type === "LATENT")?.name);
  }
  return [numberOf(node, "width") || 1, numberOf(node, "height") || 1];
}
