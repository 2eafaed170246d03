/** Completion after `<|` in the prompt of MM-Diff Text Encode: the names of the connected subjects,
 * then `subj`. */
import { app } from "../../scripts/app.js";
import { namesBefore, widgetOf } from "./subject_names.js";

const OPENED = /<\|([^<|>\n]*)$/; // before the caret
const CLOSED = /^[^<|>\n]*\|>/; // after it, when an existing marker is changed
const STYLE =
  "position:fixed;z-index:10000;margin:0;padding:3px;list-style:none;min-width:90px;max-height:180px;overflow:auto;border:1px solid #666;" +
  "border-radius:4px;background:#222;color:#ddd;font:12px/1.5 system-ui,sans-serif;box-shadow:0 2px 8px #0008";

/** The node whose prompt this text box is, in both of ComfyUI's ways to draw nodes; undefined for any other text box.
 * @param {EventTarget | null} box */
function nodeOfPrompt(box) {
  if (!(box instanceof HTMLTextAreaElement)) return undefined;
  const graph = app.canvas?.graph ?? app.graph;
  const drawn = box.closest("[data-node-id]"); // Nodes 2.0; there the prompt is the first text box of its node
  if (drawn) {
    const node = graph.getNodeById(drawn.getAttribute("data-node-id"));
    return node?.comfyClass === "MMDiffTextEncode" && drawn.querySelector("textarea") === box ? node : undefined;
  }
  return graph.nodes.find((/** @type {any} */ node) => {
    const widget = node.comfyClass === "MMDiffTextEncode" && widgetOf(node, "text");
    return widget && widget.element === box;
  });
}

/** @param {any} node
 * @param {string} begun */
function choices(node, begun) {
  const names = namesBefore(node).filter((name) => name && !/[<|>{}\n]/.test(name));
  return [...new Set([...names, "subj"])].filter((name) => name.toLowerCase().startsWith(begun.toLowerCase()));
}

/** The one list on the page. */
const list = {
  /** @type {HTMLUListElement | null} */
  element: null,
  /** @type {HTMLTextAreaElement | null} */
  box: null,
  /** @type {string[]} */
  names: [],
  chosen: 0,

  /** @param {HTMLTextAreaElement} box
   * @param {string[]} names */
  open(box, names) {
    this.close();
    [this.box, this.names, this.chosen] = [box, names, 0];
    this.element = document.createElement("ul");
    this.element.className = "mmdiff-names";
    this.element.setAttribute("role", "listbox");
    const area = box.getBoundingClientRect();
    this.element.style.cssText = `${STYLE};left:${area.left}px;top:${area.bottom + 2}px`;
    names.forEach((name, i) => {
      const item = document.createElement("li");
      item.setAttribute("role", "option");
      item.textContent = name;
      item.style.cssText = "padding:1px 8px;border-radius:3px;cursor:pointer";
      item.addEventListener("pointerdown", (event) => {
        event.preventDefault(); // the text box keeps the caret
        event.stopPropagation();
        this.chosen = i;
        this.insert();
      });
      this.element?.append(item);
    });
    document.body.append(this.element);
    const below = this.element.getBoundingClientRect();
    if (below.bottom > innerHeight) this.element.style.top = `${Math.max(0, area.top - below.height - 2)}px`;
    this.mark();
  },

  mark() {
    [...(this.element?.children ?? [])].forEach((item, i) => {
      item.setAttribute("aria-selected", String(i === this.chosen));
      /** @type {HTMLElement} */ (item).style.background = i === this.chosen ? "#4a6fa5" : "transparent";
    });
    this.element?.children[this.chosen]?.scrollIntoView({ block: "nearest" });
  },

  close() {
    this.element?.remove();
    this.element = this.box = null;
  },

  /** Put the chosen name where the caret is, as typing would: the page's own undo and the widget follow. */
  insert() {
    const { box } = this;
    if (!box) return;
    const caret = box.selectionStart;
    const begun = box.value.slice(0, caret).match(OPENED)?.[1] ?? "";
    const text = `${this.names[this.chosen]}|>`;
    const end = caret + (box.value.slice(caret).match(CLOSED)?.[0].length ?? 0);
    this.close();
    box.focus();
    box.setSelectionRange(caret - begun.length, end);
    if (document.execCommand("insertText", false, text)) return;
    box.setRangeText(text, caret - begun.length, end, "end");
    box.dispatchEvent(new InputEvent("input", { bubbles: true }));
  },

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (!this.element || event.target !== this.box) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) this.chosen = (this.chosen + step + this.names.length) % this.names.length;
    else if (event.key === "Enter" || event.key === "Tab") this.insert();
    else if (event.key === "Escape") this.close();
    else return;
    this.mark();
    event.preventDefault();
    event.stopImmediatePropagation();
  },
};

app.registerExtension({
  name: "mmdiff.names",
  setup() {
    document.addEventListener("input", (event) => {
      const node = nodeOfPrompt(event.target);
      if (!node) return;
      const box = /** @type {HTMLTextAreaElement} */ (event.target);
      const begun = box.value.slice(0, box.selectionStart).match(OPENED)?.[1];
      const names = begun === undefined ? [] : choices(node, begun);
      if (names.length) list.open(box, names);
      else list.close();
    }, true);
    document.addEventListener("keydown", (event) => list.onKey(event), true);
    document.addEventListener("focusout", (event) => event.target === list.box && list.close(), true);
    document.addEventListener("wheel", (event) => !list.element?.contains(/** @type {Node} */ (event.target)) && list.close(), true);
    document.addEventListener("pointerdown", (event) => event.target !== list.box && !list.element?.contains(/** @type {Node} */ (event.target)) && list.close(), true);
  },
});
