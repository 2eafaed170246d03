/** Shows on the node which noun was bound to which subject (MM-Diff Text Encode), what was written
 * (Convert, Save), and the warnings about reference images (MM-Diff Subject Encoder). */
import { app } from "../../scripts/app.js";
import { colourOf } from "./box_maths.js";
import { after } from "./elements.js";
import { everyNode, lastShown } from "./last_shown.js";
import { stayShown } from "./stay_shown.js";

const SHOWS_NOTES = ["MMDiffSubjectEncoder", "MMDiffAttentionMaps", "MMDiffLikeness"]; // only when there is something to say
const SHOWS_TEXT = ["MMDiffTextEncode", "MMDiffConvert", "MMDiffSaveSubject"];

/** Lines of text; a line of `bindings` begins with its word in the subject's colour.
 * @param {HTMLElement} element
 * @param {string[]} lines
 * @param {{word: string, subject: number}[]} bindings one for each of the first lines */
function write(element, lines, bindings) {
  element.replaceChildren(
    ...lines.flatMap((line, i) => {
      const end = i < lines.length - 1 ? "\n" : "";
      const bound = bindings[i];
      if (!bound || !line.startsWith(bound.word)) return [line + end];
      const word = document.createElement("b");
      word.textContent = bound.word;
      word.style.color = colourOf(bound.subject);
      return [word, line.slice(bound.word.length) + end];
    }),
  );
}

/** How each node shows an output. @type {WeakMap<object, (message: any) => void>} */
const shows = new WeakMap();

app.registerExtension({
  name: "mmdiff.text",
  nodeCreated(node) {
    const notes = SHOWS_NOTES.includes(node.comfyClass);
    if (!notes && !SHOWS_TEXT.includes(node.comfyClass)) return;
    const element = document.createElement("pre");
    element.className = "mmdiff-text";
    element.style.cssText = "margin:0;padding:4px 8px;overflow:auto;white-space:pre-wrap;font-size:11px;opacity:0.85";
    if (notes) element.style.display = "none";
    const widget = node.addDOMWidget("shown", "MMDIFF_TEXT", element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => (notes ? (element.textContent ? 66 : 0) : 44),
    });
    widget.serialize = false;
    stayShown(node, element);
    // the node was measured before it had this; a person's own larger size stays
    const fit = () => node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
    if (!notes) fit();
    /** @param {{text?: string[], bindings?: {word: string, subject: number}[]} | undefined} message */
    const show = (message) => {
      write(element, (message?.text ?? []).flatMap((text) => text.split("\n")), message?.bindings ?? []);
      if (notes) element.style.display = element.textContent ? "" : "none";
      if (element.textContent) fit();
    };
    shows.set(node, show);
    after(node, "onExecuted", show);
    after(node, "onConfigure", () => show(lastShown(node))); // undo made it anew
  },
  /** The page has gone back to a graph whose outputs it kept. */
  onNodeOutputsUpdated() {
    for (const node of everyNode()) shows.get(node)?.(lastShown(node));
  },
});
