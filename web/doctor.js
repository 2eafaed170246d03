/** The report of MM-Diff Doctor as a table on its node: state, part and text of each line, links that
 * open, and a button that copies the report. Plain elements, for both of ComfyUI's node renderers. */
import { app } from "../../scripts/app.js";
import { addStyle, after, element } from "./elements.js";
import { everyNode, lastShown } from "./last_shown.js";
import { stayShown } from "./stay_shown.js";
import { say } from "./words.js";

/** @typedef {{state: string, part: string, text: string}} Line */

const WIDTH = 560; // of a new node, and the least that it can be made on the classic canvas
const TABLE = 480;
const [EMPTY, HIGHEST, HEAD] = [60, 620, 48]; // of the report on the node, and of its head; what is longer scrolls
const STATES = ["missing", "note", "ok"];
const LINK = /https?:\/\/[^\s<>"]*[^\s<>".,;:)]/g;

// a state's colour behind its word, with a contrast of at least 4.5 to 1 to white; as in mmdiff_core/host/doctor
const STYLE = `
.mmdiff-doctor { display: flex; flex-direction: column; box-sizing: border-box; min-width: ${TABLE}px; padding: 4px 8px; overflow: hidden;
  color: var(--input-text, #ddd); font: 12px/1.45 sans-serif; user-select: text; cursor: auto; }
.mmdiff-doctor .head { display: flex; flex: none; align-items: center; justify-content: space-between; gap: 8px; padding-bottom: 4px; }
.mmdiff-doctor .head b { font-size: 13px; }
.mmdiff-doctor button { flex: none; padding: 3px 12px; border: 1px solid var(--border-color, #666); border-radius: 6px;
  background: var(--comfy-input-bg, #222); color: inherit; font: inherit; cursor: pointer; }
.mmdiff-doctor button:hover, .mmdiff-doctor button:focus-visible { outline: 2px solid #6aa9ff; }
.mmdiff-doctor .scroll { flex: 1 1 auto; min-height: 0; overflow: auto; }
[data-node-id] .mmdiff-doctor .scroll { max-height: ${HIGHEST - HEAD}px; }
.mmdiff-doctor table { width: 100%; border-collapse: collapse; table-layout: fixed; }
.mmdiff-doctor th { padding: 8px 0 2px; text-align: left; font-weight: 600; border-bottom: 1px solid var(--border-color, #555); }
.mmdiff-doctor td { padding: 3px 0; vertical-align: top; overflow-wrap: anywhere; white-space: pre-wrap; }
.mmdiff-doctor col.state { width: 76px; }
.mmdiff-doctor .state span { display: inline-block; min-width: 52px; padding: 0 6px; border-radius: 8px; text-align: center; color: #fff; }
.mmdiff-doctor .ok .state span { background: #2e7d32; }
.mmdiff-doctor .note .state span { background: #a35200; }
.mmdiff-doctor .missing .state span { background: #c62828; }
.mmdiff-doctor a { color: color-mix(in srgb, #3b82f6 55%, currentColor); text-decoration: underline; }
`;

/** @param {string} state */
function word(state) {
  if (state === "ok") return say("ok");
  return state === "note" ? say("note") : say("missing");
}

/** A text with its addresses as links.
 * @param {HTMLElement} cell
 * @param {string} text */
function writeLinked(cell, text) {
  let end = 0;
  for (const found of text.matchAll(LINK)) {
    cell.append(text.slice(end, found.index));
    element("a", "", cell, { href: found[0], target: "_blank", rel: "noopener noreferrer" }).textContent = found[0];
    end = found.index + found[0].length;
  }
  cell.append(text.slice(end));
}

/** Put a text on the clipboard; pages that are not served over HTTPS or from this machine have no clipboard object.
 * @param {string} text */
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = element("textarea", "", document.body);
  area.value = text;
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser refused");
}

/** The parts: those with a missing line, those with a note, the others; else in their order.
 * @param {Line[]} lines */
function worstFirst(lines) {
  const of = (/** @type {string} */ part) => lines.filter((line) => line.part === part);
  const rank = (/** @type {string} */ part) => Math.min(...of(part).map((line) => STATES.indexOf(line.state)));
  return [...new Set(lines.map((line) => line.part))].sort((a, b) => rank(a) - rank(b));
}

class Report {
  /** @param {any} node */
  constructor(node) {
    this.node = node;
    this.text = "";
    this.known = 0; // height of the table when it was last in sight
    this.root = element("div", "mmdiff-doctor", undefined, { "data-capture-wheel": "true" });
    const head = element("div", "head", this.root);
    this.title = element("b", "", head);
    this.button = element("button", "", head, { type: "button" });
    this.button.onclick = () => this.copy();
    this.table = element("table", "", element("div", "scroll", this.root));
    for (const kind of ["pointerdown", "pointermove", "dblclick"]) {
      this.root.addEventListener(kind, (event) => event.stopPropagation()); // else text cannot be selected
    }
    this.show(undefined);
  }

  /** @param {{text?: string[], lines?: Line[]} | undefined} output of the node's last run */
  show(output) {
    const lines = output?.lines ?? [];
    this.text = output?.text?.[0] ?? "";
    this.title.textContent = lines.length ? this.text.split("\n")[0] : say("Run this node to see its report.");
    this.button.hidden = !lines.length;
    this.button.textContent = say("Copy");
    this.table.replaceChildren();
    if (!lines.length) return;
    const columns = element("colgroup", "", this.table);
    element("col", "state", columns);
    element("col", "", columns);
    for (const part of worstFirst(lines)) {
      element("th", "", element("tr", "part", this.table), { colspan: "2" }).textContent = part;
      for (const line of lines.filter((each) => each.part === part)) this.write(line);
    }
    this.fit();
  }

  /** @param {Line} line */
  write(line) {
    const row = element("tr", line.state, this.table);
    element("span", "", element("td", "state", row)).textContent = word(line.state);
    writeLinked(element("td", "", row), line.text);
  }

  async copy() {
    try {
      await copy(this.text);
      this.button.textContent = say("Copied");
    } catch (error) {
      this.button.textContent = say("Not copied: {reason}", { reason: String(error) });
    }
  }

  get height() {
    if (!this.table.rows.length) return EMPTY;
    this.known = this.table.offsetHeight || this.known; // 0 while it is out of sight
    return this.known ? Math.min(this.known + HEAD, HIGHEST) : HIGHEST;
  }

  /** The node as high as the report; a person's own larger size stays. */
  fit() {
    requestAnimationFrame(() => {
      const [width, height] = this.node.computeSize();
      this.node.setSize([Math.max(this.node.size[0], width), Math.max(this.node.size[1], height)]);
      app.graph?.setDirtyCanvas(true, true);
    });
  }
}

/** @type {WeakMap<any, Report>} */
const reports = new WeakMap();

app.registerExtension({
  name: "mmdiff.doctor",
  nodeCreated(node) {
    if (node.comfyClass !== "MMDiffDoctor") return;
    addStyle("mmdiff-doctor-style", STYLE);
    const report = new Report(node);
    reports.set(node, report);
    const options = { serialize: false, hideOnZoom: false, getMinHeight: () => report.height };
    node.addDOMWidget("report_table", "MMDIFF_DOCTOR", report.root, options).serialize = false;
    const least = node.computeSize;
    node.computeSize = function () {
      const [width, height] = least.apply(this, arguments);
      return [Math.max(width, WIDTH), height];
    };
    node.setSize(node.computeSize());
    after(node, "onExecuted", (output) => report.show(output));
    after(node, "onConfigure", () => {
      report.show(lastShown(node)); // undo made it anew
      if (node.size[0] < WIDTH) node.setSize([WIDTH, node.size[1]]); // of an older version
    });
    stayShown(node, report.root);
  },
  /** The page has gone back to a graph whose outputs it kept. */
  onNodeOutputsUpdated() {
    for (const node of everyNode()) reports.get(node)?.show(lastShown(node));
  },
});
