/** Shows on the node which word was bound to which subject (MM-Diff Text Encode), and what was written (Convert, Save). */
import { app } from "../../scripts/app.js";

const SHOWS_NOTES = ["MMDiffSubjectEncoder"]; // only when there is something to say
const SHOWS_TEXT = ["MMDiffTextEncode", "MMDiffConvert", "MMDiffSaveSubject"];

app.registerExtension({
  name: "mmdiff.text",
  nodeCreated(node) {
    const notes = SHOWS_NOTES.includes(node.comfyClass);
    if (!notes && !SHOWS_TEXT.includes(node.comfyClass)) return;
    const element = document.createElement("pre");
    element.style.cssText = "margin:0;padding:4px 8px;overflow:auto;white-space:pre-wrap;font-size:11px;opacity:0.85";
    if (notes) element.style.display = "none";
    const widget = node.addDOMWidget("shown", "MMDIFF_TEXT", element, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => (notes && !element.textContent ? 0 : 44),
    });
    widget.serialize = false;
    const earlier = node.onExecuted;
    node.onExecuted = function (message) {
      earlier?.apply(this, arguments);
      element.textContent = (message?.text ?? []).join("\n");
      if (notes) element.style.display = element.textContent ? "" : "none";
    };
  },
});
