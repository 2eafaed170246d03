/** Editor for the boxes of Multi-Subject Constraint Masks, one colour per subject. The widget
 * `boxes` holds the state as text; the editor shows and writes it. Plain elements, so it works in
 * both of ComfyUI's node renderers. */
import { app } from "../../scripts/app.js";
import { between, COLOURS, colourOf, isTooSmall, MOST_BOXES, moved, parseBoxes, stretched, writeBoxes } from "./box_maths.js";
import { addStyle, after, element, setWidget } from "./elements.js";
import { everyNode } from "./last_shown.js";
import { pictureSize } from "./picture_size.js";
import { stayShown } from "./stay_shown.js";
import { incoming, widgetOf } from "./subject_names.js";
import { pictureOf } from "./subject_pictures.js";
import { say } from "./words.js";

const HEIGHT = 270;
const WIDTH = 300;
const STEP = 0.01; // of the picture, for one arrow key
const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
const ARROWS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
const help = () =>
  `${say("Drag to draw a box for the selected subject; drag a box to move it, its handles to resize it.")} ` +
  say("Keys: 1-6 select a subject, arrows move, Shift+arrows resize, Delete removes, Tab next box, Enter new box, Escape deselects.");
const STYLE = `
.mmdiff-boxes { display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; width: 100%; height: 100%; min-height: ${HEIGHT}px;
  font: 11px/1.2 system-ui, sans-serif; color: #ddd; user-select: none; touch-action: none; }
.mmdiff-boxes .bar { display: flex; gap: 3px; align-items: center; flex: none; }
.mmdiff-boxes .bar button { width: 22px; height: 20px; padding: 0; border: 2px solid var(--tone); border-radius: 4px; background: transparent;
  color: var(--tone); font: inherit; font-weight: bold; cursor: pointer; }
.mmdiff-boxes .bar button[aria-pressed="true"] { background: var(--tone); color: #111; }
.mmdiff-boxes .bar button.nobody { opacity: 0.35; cursor: not-allowed; }
.mmdiff-boxes .bar .who { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; padding-left: 3px; }
.mmdiff-boxes .bar .thumb { flex: none; width: 20px; height: 20px; margin-left: 3px; border-radius: 3px; background: center / cover no-repeat; }
.mmdiff-boxes .area { flex: 1; min-height: 0; position: relative; }
.mmdiff-boxes .stage { position: absolute; inset: 0; margin: 0 auto;
  box-sizing: border-box; background: #1b1b1b; outline: 1px solid #666; cursor: crosshair; touch-action: none; overflow: hidden; }
.mmdiff-boxes .stage:focus-visible { outline: 2px solid #fff; }
.mmdiff-boxes .hint { position: absolute; inset: 0; display: flex; align-items: center; justify-content: center; text-align: center; padding: 8px;
  color: #999; pointer-events: none; }
.mmdiff-boxes .why { position: absolute; left: 0; right: 0; bottom: 0; z-index: 2; padding: 5px 8px; background: #3a2a12; color: #ffdf9e; pointer-events: none; }
.mmdiff-boxes .why:empty { display: none; }
.mmdiff-boxes .box { position: absolute; box-sizing: border-box; border: 2px solid var(--tone); cursor: move; outline: none;
  background: color-mix(in srgb, var(--tone) 28%, transparent); }
.mmdiff-boxes .box.chosen { z-index: 1; background: color-mix(in srgb, var(--tone) 42%, transparent); }
.mmdiff-boxes .box:focus-visible { box-shadow: inset 0 0 0 1px #fff; }
.mmdiff-boxes .box.nobody { border-style: dashed; }
.mmdiff-boxes .likeness { position: absolute; inset: 0; opacity: 0.4; background: center / contain no-repeat; pointer-events: none; }
.mmdiff-boxes .label { position: absolute; left: 0; top: 0; max-width: calc(100% - 16px); overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  box-sizing: border-box; padding: 1px 4px; background: var(--tone); color: #111; font-weight: bold; pointer-events: none; }
.mmdiff-boxes .remove { position: absolute; right: 0; top: 0; width: 15px; height: 15px; padding: 0; border: 0; background: var(--tone); color: #111;
  font: bold 12px/15px system-ui, sans-serif; cursor: pointer; }
.mmdiff-boxes .handle { display: none; position: absolute; width: 9px; height: 9px; margin: -5px; background: #fff; border: 1px solid #111;
  box-sizing: border-box; }
.mmdiff-boxes .box.chosen .handle { display: block; }
`;
const PLACES = { n: [50, 0], ne: [100, 0], e: [100, 50], se: [100, 100], s: [50, 100], sw: [0, 100], w: [0, 50], nw: [0, 0] };

/** A picture behind an element, or none; left alone where it is the same, so that it does not flicker.
 * @param {HTMLElement} shown
 * @param {string} [address] */
function showPicture(shown, address) {
  const wanted = address ? `url("${address}")` : "";
  if (shown.style.backgroundImage !== wanted) shown.style.backgroundImage = wanted;
}

class BoxEditor {
  /** @type {import("./box_maths.js").Box[]} */
  boxes = [];
  /** Which box is chosen, -1 = none. */
  chosen = -1;
  /** Whom the next box is for. */
  subject = 1;
  /** Whether the chosen box was only just drawn: then choosing a subject is for the next box, else for the chosen one. */
  fresh = false;
  /** @type {{sides: string, from: {x: number, y: number}, before: any, index: number} | null} */
  drag = null;
  readable = true;
  /** How many boxes the text has where they are too many to show, else 0. */
  tooMany = 0;
  /** For whom a box was asked that has none to be drawn for, 0 = nobody. */
  refused = 0;

  /** @param {any} node
   * @param {any} widget */
  constructor(node, widget) {
    this.node = node;
    this.widget = widget;
    this.root = element("div", "mmdiff-boxes widget-expands"); // the second lets it grow with its node in Nodes 2.0
    const bar = element("div", "bar", this.root);
    this.buttons = COLOURS.map((tone, i) => {
      const button = element("button", "", bar, { type: "button", style: `--tone:${tone}` });
      button.textContent = String(i + 1);
      button.addEventListener("click", () => this.chooseSubject(i + 1));
      return button;
    });
    this.thumb = element("span", "thumb", bar);
    this.who = element("span", "who", bar);
    this.area = element("div", "area", this.root);
    this.stage = element("div", "stage", this.area, { tabindex: "0", role: "group", title: help(), "aria-label": `${say("Boxes.")} ${help()}` });
    this.hint = element("div", "hint", this.stage);
    this.why = element("div", "why", this.area, { role: "status" });
    /** @type {HTMLElement[]} */
    this.shown = [];
    this.listen();
    new ResizeObserver(() => this.fit()).observe(this.area);
    this.read();
  }

  listen() {
    const stop = (/** @type {Event} */ event) => event.stopPropagation();
    for (const kind of ["pointerdown", "pointermove", "pointerup", "dblclick"]) this.root.addEventListener(kind, stop);
    this.root.addEventListener("pointerenter", () => this.read());
    this.root.addEventListener("wheel", (event) => {
      if (!this.root.closest("[data-node-id]")) app.canvas.processMouseWheel(event); // Nodes 2.0 hands it on by itself
    });
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.stage.addEventListener("pointerdown", (event) => this.onDown(event));
    this.stage.addEventListener("pointermove", (event) => this.onMove(event));
    this.stage.addEventListener("pointerup", () => this.finish());
    this.stage.addEventListener("lostpointercapture", () => this.finish());
    this.stage.addEventListener("focusin", (event) => {
      const index = this.shown.indexOf(/** @type {HTMLElement} */ (event.target));
      if (index >= 0 && !this.drag) this.choose(index);
    });
  }

  // ---------------------------------------------------------------- the widget

  /** Show what the widget says; it may have been changed by undo, paste, loading, or by hand. */
  read() {
    if (this.drag) return;
    const found = parseBoxes(this.widget.value);
    this.readable = found !== null;
    this.tooMany = (found?.length ?? 0) > MOST_BOXES ? found.length : 0;
    this.boxes = this.tooMany ? [] : found ?? [];
    if (this.chosen >= this.boxes.length) this.chosen = -1;
    this.show();
  }

  /** Write the boxes down as one step that can be undone. */
  write() {
    const text = writeBoxes(this.boxes);
    if (text !== this.widget.value) setWidget(this.widget, text);
    this.read();
  }

  // ---------------------------------------------------------------- what is seen

  show() {
    const { subjects: found, all } = incoming(this.node);
    const subjects = all ? found : []; // behind others, nobody's number is known
    const names = subjects.map(({ name }) => name);
    const pictures = subjects.map(({ node }) => pictureOf(node));
    const nameOf = (/** @type {number} */ n) => names[n - 1] ?? (names.length ? say("no such subject") : "");
    this.fit();
    const current = this.boxes[this.chosen]?.subject ?? this.subject;
    this.buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i + 1 === current));
      const [number, name] = [i + 1, nameOf(i + 1)];
      const nobody = all && i >= names.length;
      button.title = name ? say("Subject {number}: {name}", { number, name }) : say("Subject {number}", { number });
      button.classList.toggle("nobody", nobody);
      button.setAttribute("aria-disabled", String(nobody));
    });
    this.who.textContent = nameOf(current);
    showPicture(this.thumb, pictures[current - 1]);
    this.thumb.style.display = pictures[current - 1] ? "" : "none";
    this.hint.textContent = this.saying();
    this.why.textContent = (this.refused && this.lacking(this.refused)) || "";
    while (this.shown.length < this.boxes.length) this.shown.push(this.newBox());
    while (this.shown.length > this.boxes.length) this.shown.pop()?.remove();
    this.boxes.forEach((box, i) => {
      const shown = this.shown[i];
      shown.style.cssText =
        `--tone:${colourOf(box.subject)};left:${box.x * 100}%;top:${box.y * 100}%;width:${box.width * 100}%;height:${box.height * 100}%`;
      shown.classList.toggle("chosen", i === this.chosen);
      shown.classList.toggle("nobody", names.length > 0 && box.subject > names.length);
      const label = `${box.subject} ${nameOf(box.subject)}`.trim();
      showPicture(/** @type {HTMLElement} */ (shown.querySelector(".likeness")), pictures[box.subject - 1]);
      shown.querySelector(".label").textContent = label;
      shown.setAttribute("aria-label", say("Box of subject {label}", { label }));
    });
  }

  /** Why no box can be drawn for a subject: it is not there; undefined where it is, or where only a run can tell.
   * @param {number} number
   * @returns {string | undefined} */
  lacking(number) {
    const { subjects, all } = incoming(this.node);
    if (!all || number <= subjects.length) return undefined;
    if (!subjects.length) return say("No subject is connected. Connect MM-Diff Subject Encoder to subjects, then draw its box.");
    const names = subjects.map(({ name }, i) => `${i + 1} ${name}`.trim()).join(", ");
    return say("There is no subject {number}; connected: {names}. Chain another MM-Diff Subject Encoder to add one.", { number, names });
  }

  /** Whether a subject is not there for a box; then says so.
   * @param {number} number */
  refuses(number) {
    this.refused = this.lacking(number) ? number : 0;
    if (this.refused) this.show();
    return this.refused > 0;
  }

  /** What stands in the drawing beside the boxes. */
  saying() {
    if (!this.readable) return say("The boxes text is not valid; drawing replaces it");
    if (this.tooMany) return say("{count} boxes are too many, at most {most}; drawing replaces them", { count: this.tooMany, most: MOST_BOXES });
    if (this.isFull()) return say("{most} boxes; delete one to draw another", { most: MOST_BOXES });
    return this.boxes.length || this.refused ? "" : this.lacking(1) ?? say("Drag to draw a box");
  }

  isFull() {
    return this.boxes.length >= MOST_BOXES;
  }

  /** The drawing has the picture's shape, as large as there is room. */
  fit() {
    const [width, height] = pictureSize(this.node);
    const scale = Math.min(this.area.clientWidth / width, this.area.clientHeight / height);
    this.stage.style.width = `${width * scale}px`;
    this.stage.style.height = `${height * scale}px`;
  }

  newBox() {
    const box = element("div", "box", this.stage, { tabindex: "0", role: "img" });
    element("div", "likeness", box);
    element("span", "label", box);
    const titles = { title: say("Delete this box"), "aria-label": say("Delete") };
    element("button", "remove", box, { type: "button", tabindex: "-1", ...titles }).textContent = "×";
    for (const sides of HANDLES) {
      const [left, top] = PLACES[sides];
      element("div", "handle", box, { "data-sides": sides, style: `left:${left}%;top:${top}%;cursor:${sides}-resize` });
    }
    return box;
  }

  /** @param {number} index */
  choose(index) {
    if (index !== this.chosen) this.fresh = false;
    this.chosen = index;
    this.refused = 0;
    if (this.boxes[index]) this.subject = this.boxes[index].subject;
    this.show();
  }

  /** @param {number} subject */
  chooseSubject(subject) {
    if (this.refuses(subject)) return;
    this.subject = subject;
    const box = this.boxes[this.chosen];
    if (this.fresh) this.chosen = -1;
    else if (box) this.boxes[this.chosen] = { ...box, subject };
    this.fresh = false;
    this.write();
  }

  // ---------------------------------------------------------------- the mouse

  /** @param {PointerEvent} event */
  place(event) {
    const area = this.stage.getBoundingClientRect();
    return { x: (event.clientX - area.left) / area.width, y: (event.clientY - area.top) / area.height };
  }

  /** @param {PointerEvent} event */
  onDown(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.read();
    const target = /** @type {HTMLElement} */ (event.target);
    const index = this.shown.findIndex((shown) => shown.contains(target));
    if (target.classList.contains("remove")) {
      this.remove(index);
      return;
    }
    const from = this.place(event);
    const sides = target.dataset.sides ?? (index < 0 ? "draw" : "move");
    this.choose(index);
    this.fresh = false;
    if (sides === "draw" && (this.isFull() || this.refuses(this.subject))) return;
    this.drag = { sides, from, before: this.boxes[index], index };
    (this.shown[index] ?? this.stage).focus({ preventScroll: true });
    this.stage.setPointerCapture(event.pointerId);
  }

  /** @param {PointerEvent} event */
  onMove(event) {
    if (!this.drag) return;
    const { sides, from, before } = this.drag;
    const to = this.place(event);
    if (sides === "draw") {
      const drawn = between(this.subject, from, to);
      if (this.drag.index < 0 && isTooSmall(drawn)) return;
      if (this.drag.index < 0) this.drag.index = this.boxes.length;
      this.boxes[this.drag.index] = drawn;
      this.chosen = this.drag.index;
    } else if (sides === "move") this.boxes[this.drag.index] = moved(before, to.x - from.x, to.y - from.y);
    else this.boxes[this.drag.index] = stretched(before, sides, to.x - from.x, to.y - from.y);
    this.show();
  }

  finish() {
    if (!this.drag) return;
    const { sides, index } = this.drag;
    this.drag = null;
    if (index < 0) return this.show();
    if (sides === "draw" && isTooSmall(this.boxes[index])) this.boxes.splice(index, 1);
    this.write();
    this.shown[index]?.focus({ preventScroll: true });
    this.fresh = sides === "draw" && index === this.chosen;
  }

  /** Drop what is being dragged. */
  cancel() {
    this.drag = null;
    this.read();
  }

  // ---------------------------------------------------------------- the keys

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.handleKey(event)) return;
    event.preventDefault();
    event.stopPropagation(); // Delete would remove the node, arrows would move it
  }

  /** Whether the key was the editor's.
   * @param {KeyboardEvent} event */
  handleKey(event) {
    const number = Number(event.key);
    if (number >= 1 && number <= COLOURS.length) {
      this.chooseSubject(number);
      return true;
    }
    if (event.target instanceof HTMLButtonElement) return false;
    const box = this.boxes[this.chosen];
    if (event.key === "Escape") {
      if (this.drag) this.cancel();
      else if (box) this.choose(-1);
      else this.stage.blur();
      if (!box) return true;
      this.stage.focus({ preventScroll: true });
    } else if (event.key === "Enter") {
      if (this.isFull() || this.refuses(this.subject)) return true;
      this.boxes.push({ subject: this.subject, x: 0.3, y: 0.3, width: 0.4, height: 0.4 });
      this.write();
      this.shown.at(-1)?.focus({ preventScroll: true });
    } else if (!box) return ["Delete", "Backspace", ...Object.keys(ARROWS)].includes(event.key); // with no box chosen they do nothing
    else if (event.key === "Delete" || event.key === "Backspace") this.remove(this.chosen);
    else if (event.key in ARROWS) {
      const [dx, dy] = ARROWS[event.key];
      this.fresh = false;
      this.boxes[this.chosen] = event.shiftKey ? stretched(box, "es", dx, dy) : moved(box, dx, dy);
      this.write();
    } else return false;
    return true;
  }

  /** @param {number} index */
  remove(index) {
    this.boxes.splice(index, 1);
    this.chosen = -1;
    this.write();
    this.stage.focus({ preventScroll: true });
  }
}

/** @type {WeakMap<object, BoxEditor>} */
const editors = new WeakMap();

/** Look again at what the graph says about the boxes' subjects; `afresh` also at pictures that were not there before. */
export function readAll(afresh = false) {
  for (const editor of everyNode().flatMap((node) => editors.get(node) ?? [])) {
    for (const shown of afresh ? editor.root.querySelectorAll(".likeness, .thumb") : []) showPicture(/** @type {HTMLElement} */ (shown));
    editor.read();
  }
}

app.registerExtension({
  name: "mmdiff.boxes",
  nodeCreated(node) {
    const widget = node.comfyClass === "MMDiffConstraintMasks" && widgetOf(node, "boxes");
    if (!widget) return;
    addStyle("mmdiff-boxes-style", STYLE);
    const editor = new BoxEditor(node, widget);
    editors.set(node, editor);
    const options = { serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT };
    const shown = node.addDOMWidget("box_editor", "MMDIFF_BOXES", editor.root, options);
    shown.serialize = false; // it holds nothing: the text does
    widget.hidden = true; // litegraph looks here,
    widget.computeSize = () => [0, -4]; // and would leave a gap: it adds 4 between widgets
    widget.options = { ...widget.options, hidden: true }; // Nodes 2.0 looks here
    const read = () => editor.read();
    for (const name of ["boxes", "width", "height"]) {
      const changed = widgetOf(node, name);
      if (changed) after(changed, "callback", read);
    }
    for (const event of ["onConfigure", "onConnectionsChange", "onExecuted"]) after(node, event, read);
    stayShown(node, editor.root);
    const least = node.computeSize();
    node.setSize([Math.max(node.size[0], least[0], WIDTH), Math.max(node.size[1], least[1])]);
  },
  /** The page has gone back to a graph whose outputs it kept: now the subjects' pictures are known. */
  onNodeOutputsUpdated: () => readAll(),
});
