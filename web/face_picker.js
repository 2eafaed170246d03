/** Face picker on MM-Diff Subject Encoder: after a run that found several faces, shows the image
 * with every face, to select one with a click. The widget `face` holds the state; the picker shows
 * and writes it. Plain elements, so it works in both of ComfyUI's node renderers. */
import { app } from "../../scripts/app.js";
import { addStyle, after, element, setWidget } from "./elements.js";
import { addressOf, everyNode, lastShown } from "./last_shown.js";
import { stayShown } from "./stay_shown.js";
import { widgetOf } from "./subject_names.js";
import { say } from "./words.js";

/** @typedef {{x: number, y: number, width: number, height: number}} Box  in pixels of its picture
 * @typedef {{width: number, height: number, used: number, boxes: Box[], picture: import("./last_shown.js").PictureFile | null}} Faces  of one
 *   picture, from left to right; `used` counts from 1, `picture` is null where there is nothing to choose */

const [LOWEST, HIGHEST] = [90, 250]; // of the picture on the node
const BAR = 24;
const TAG = 17; // height of a face's number
const LARGEST = 0;
const STYLE = `
.mmdiff-faces { --used: #5fd17a; --next: #ffc53d; display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; width: 100%; height: 100%;
  font: 11px/1.2 system-ui, sans-serif; color: #ddd; user-select: none; }
.mmdiff-faces .bar { display: flex; flex-wrap: wrap; gap: 3px; align-items: center; flex: none; }
.mmdiff-faces .bar button { height: 20px; padding: 0 6px; border: 1px solid #888; border-radius: 4px; background: transparent; color: inherit;
  font: inherit; cursor: pointer; }
.mmdiff-faces .bar button[aria-pressed="true"] { background: #ddd; color: #111; }
.mmdiff-faces .bar button:focus-visible, .mmdiff-faces .face:focus-visible { outline: 2px solid #fff; outline-offset: 1px; }
.mmdiff-faces .turn { display: flex; gap: 3px; align-items: center; white-space: nowrap; }
.mmdiff-faces .says { flex: 1 1 auto; max-width: 100%; padding-left: 3px; }
.mmdiff-faces .area { flex: 1; min-height: 0; position: relative; }
.mmdiff-faces .stage { position: absolute; inset: 0; margin: 0 auto; background: #1b1b1b; overflow: hidden; }
.mmdiff-faces .stage img { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
.mmdiff-faces .face { position: absolute; box-sizing: border-box; min-width: 14px; min-height: 14px; padding: 0; border: 2px solid var(--tone);
  border-radius: 3px; background: transparent; box-shadow: 0 0 0 1px #000b, inset 0 0 0 1px #000b; cursor: pointer; --tone: #fff; }
.mmdiff-faces .face b { position: absolute; left: -2px; bottom: 100%; min-width: 14px; padding: 1px 3px; box-sizing: border-box; background: var(--tone);
  color: #111; font: bold 11px/13px system-ui, sans-serif; text-align: center; border-radius: 3px 3px 0 0; box-shadow: 0 0 0 1px #000b; }
.mmdiff-faces .face.high b { top: 0; bottom: auto; }
.mmdiff-faces .face:hover { background: #fff3; }
.mmdiff-faces .face.next { --tone: var(--next); border-width: 3px; }
.mmdiff-faces .face.used { --tone: var(--used); }
.mmdiff-faces .face.used.next { border-width: 3px; }
.mmdiff-faces [aria-disabled="true"] { cursor: not-allowed; }
.mmdiff-faces .bar [aria-disabled="true"], .mmdiff-faces .face[aria-disabled="true"]:not(.used) { opacity: 0.55; }
`;

/** Which face a number means on a picture, from 1; undefined where the picture has no such face.
 * @param {Faces} faces
 * @param {number} number */
function meant({ boxes }, number) {
  if (number !== LARGEST) return number <= boxes.length ? number : undefined;
  const areas = boxes.map((box) => box.width * box.height);
  return areas.indexOf(Math.max(...areas)) + 1;
}

class FacePicker {
  /** Of every picture of the last run. @type {Faces[]} */
  found = [];
  /** Which of them is shown. */
  turn = 0;
  /** Room it takes, 0 = not shown. */
  height = 0;
  /** What the node grew by for the picker. */
  grown = 0;

  /** @param {any} node
   * @param {any} widget its `face` */
  constructor(node, widget) {
    this.node = node;
    this.widget = widget;
    this.root = element("div", "mmdiff-faces widget-expands", undefined, { role: "group", "aria-label": say("Faces found in the images") });
    this.root.style.display = "none";
    const bar = element("div", "bar", this.root);
    this.largest = this.button("", bar, say("largest"), () => this.pick(LARGEST));
    this.largest.title = say("The largest face of each image (0)");
    this.turner = element("span", "turn", bar);
    this.button("", this.turner, "‹", () => this.turnTo(-1)).setAttribute("aria-label", say("Previous image"));
    this.which = element("span", "", this.turner);
    this.button("", this.turner, "›", () => this.turnTo(1)).setAttribute("aria-label", say("Next image"));
    this.says = element("span", "says", bar, { role: "status" });
    this.area = element("div", "area", this.root);
    this.stage = element("div", "stage", this.area);
    this.image = /** @type {HTMLImageElement} */ (element("img", "", this.stage, { alt: "", draggable: "false" }));
    /** @type {HTMLElement[]} */
    this.buttons = [];
    this.listen();
    new ResizeObserver(() => this.fit()).observe(this.area);
  }

  /** @param {string} className
   * @param {HTMLElement} parent
   * @param {string} text
   * @param {() => void} then */
  button(className, parent, text, then) {
    const made = element("button", className, parent, { type: "button" });
    made.textContent = text;
    made.addEventListener("click", then);
    return made;
  }

  listen() {
    for (const kind of ["pointerdown", "pointermove", "pointerup", "dblclick"]) this.root.addEventListener(kind, (event) => event.stopPropagation());
    this.root.addEventListener("pointerenter", () => this.mark());
    this.root.addEventListener("wheel", (event) => {
      if (!this.root.closest("[data-node-id]")) app.canvas.processMouseWheel(event); // Nodes 2.0 hands it on by itself
    });
    this.root.addEventListener("keydown", (event) => {
      if (["Enter", " "].includes(event.key) && !event.ctrlKey && !event.metaKey) event.stopPropagation(); // the page has uses of its own for them
    });
  }

  get isShown() {
    return this.height > 0;
  }

  /** The face number of every picture comes from another node. */
  get isLinked() {
    const slot = this.node.inputs?.findIndex((/** @type {any} */ input) => input.widget?.name === this.widget.name) ?? -1;
    return slot >= 0 && !!this.node.graph && this.node.isInputConnected(slot); // newer frontends throw for a node that is in no graph yet
  }

  /** Numbers up to this exist on every picture. */
  get most() {
    return Math.min(...this.found.map(({ boxes }) => boxes.length));
  }

  // ---------------------------------------------------------------- what is seen

  /** Show what a run found; nothing where no picture has a second face.
   * @param {Faces[]} found */
  show(found) {
    this.found = found;
    if (!found[this.turn]?.picture) this.turn = Math.max(0, found.findIndex(({ picture }) => picture));
    this.makeRoom();
    if (this.isShown) this.draw();
  }

  /** Take the room that the shown picture needs at the node's width, or give it back. */
  makeRoom() {
    const [nodeWidth, nodeHeight] = this.node.size;
    const { picture, width, height } = this.found[this.turn] ?? {};
    const wanted = picture ? BAR + Math.min(Math.max(((nodeWidth - 30) * height) / width, LOWEST), HIGHEST) : 0;
    if (wanted === this.height) return;
    this.height = wanted;
    this.root.style.display = wanted ? "" : "none";
    this.root.style.minHeight = `${wanted}px`; // for Nodes 2.0
    const size = Math.max(this.node.computeSize()[1], wanted ? nodeHeight : nodeHeight - this.grown);
    this.grown = wanted ? this.grown + size - nodeHeight : 0;
    this.node.setSize([nodeWidth, size]);
  }

  /** The picture of this turn and a button on each of its faces. */
  draw() {
    const { boxes, width, height, picture } = this.found[this.turn];
    const address = addressOf(/** @type {import("./last_shown.js").PictureFile} */ (picture));
    if (this.image.getAttribute("src") !== address) this.image.src = address;
    const share = (/** @type {number} */ value, /** @type {number} */ whole) => `${Math.min(Math.max(value / whole, 0), 1) * 100}%`;
    const inFront = [...boxes].sort((a, b) => b.width * b.height - a.width * a.height); // a small face on a large one can be clicked
    for (const button of this.buttons) button.remove();
    this.buttons = boxes.map((box, i) => {
      const button = this.button("face", this.stage, "", () => this.pick(i + 1));
      element("b", "", button).textContent = String(i + 1);
      button.style.cssText =
        `left:${share(box.x, width)};top:${share(box.y, height)};right:${share(width - box.x - box.width, width)};` +
        `bottom:${share(height - box.y - box.height, height)};z-index:${inFront.indexOf(box) + 1}`;
      return button;
    });
    const place = { number: this.turn + 1, count: this.found.length };
    this.which.textContent = say("{number} of {count}", place);
    this.which.title = say("Image {number} of {count}", place);
    this.turner.style.display = this.found.filter((faces) => faces.picture).length > 1 ? "" : "none";
    this.fit();
    this.mark();
  }

  /** Which face was used, and which the next run will use. */
  mark() {
    if (!this.isShown) return;
    const faces = this.found[this.turn];
    const linked = this.isLinked;
    const number = Number(this.widget.value);
    const next = linked ? faces.used : meant(faces, number);
    this.buttons.forEach((button, i) => {
      const [used, chosen] = [i + 1 === faces.used, i + 1 === next];
      button.classList.toggle("used", used);
      button.classList.toggle("next", chosen);
      button.setAttribute("aria-pressed", String(!linked && i + 1 === number));
      button.setAttribute("aria-disabled", String(linked || i + 1 > this.most));
      const place = { number: i + 1, count: faces.boxes.length };
      const label = used ? say("Face {number} of {count}, used in the last run", place) : say("Face {number} of {count}", place);
      button.setAttribute("aria-label", label);
      button.title = linked ? "" : this.lacking(i + 1) ?? say("Use face {number}", place);
    });
    this.largest.setAttribute("aria-pressed", String(!linked && number === LARGEST));
    this.largest.setAttribute("aria-disabled", String(linked));
    if (linked) this.tell(say("face is connected; choose it there"));
    else if (next === undefined) this.tell(say("there is no face {number} in this image", { number }));
    else this.tell(next === faces.used ? say("face {number} is used", { number: next }) : say("next run: face {number}", { number: next }));
  }

  /** @param {string} text */
  tell(text) {
    if (this.says.textContent !== text) this.says.textContent = text; // a screen reader would read it again
  }

  /** Why a face number cannot be used; undefined where it can.
   * @param {number} number */
  lacking(number) {
    const index = this.found.findIndex(({ boxes }) => boxes.length < number);
    if (index < 0) return undefined;
    const count = this.found[index].boxes.length;
    const values = { picture: index + 1, count };
    if (count === 1) return say("the number applies to all images, but image {picture} has only {count} face", values);
    return say("the number applies to all images, but image {picture} has only {count} faces", values);
  }

  /** The stage has the picture's shape, as large as there is room. */
  fit() {
    if (!this.isShown) return;
    const { boxes, width, height } = this.found[this.turn];
    const scale = Math.min(this.area.clientWidth / width, this.area.clientHeight / height);
    this.stage.style.width = `${width * scale}px`;
    this.stage.style.height = `${height * scale}px`;
    this.buttons.forEach((button, i) => button.classList.toggle("high", boxes[i].y * scale < TAG));
  }

  // ---------------------------------------------------------------- what is done

  /** @param {number} number */
  pick(number) {
    const why = this.lacking(number);
    if (!this.isLinked && why === undefined && number !== Number(this.widget.value)) setWidget(this.widget, number);
    this.mark();
    if (why !== undefined && !this.isLinked) this.tell(why);
  }

  /** The next picture that has several faces.
   * @param {number} step */
  turnTo(step) {
    const count = this.found.length;
    do this.turn = (this.turn + step + count) % count;
    while (!this.found[this.turn].picture);
    this.draw();
  }
}

/** @type {WeakMap<object, FacePicker>} */
const pickers = new WeakMap();

app.registerExtension({
  name: "mmdiff.faces",
  nodeCreated(node) {
    const widget = node.comfyClass === "MMDiffSubjectEncoder" && widgetOf(node, "face");
    if (!widget) return;
    addStyle("mmdiff-faces-style", STYLE);
    const picker = new FacePicker(node, widget);
    pickers.set(node, picker);
    const options = { serialize: false, hideOnZoom: false, getMinHeight: () => (picker.isShown ? picker.height + 20 : 0) };
    node.addDOMWidget("face_picker", "MMDIFF_FACES", picker.root, options).serialize = false;
    after(node, "onExecuted", (message) => picker.show(message?.faces ?? []));
    after(node, "onConfigure", () => picker.show(lastShown(node)?.faces ?? [])); // undo made it anew
    after(node, "onConnectionsChange", () => picker.mark());
    after(widget, "callback", () => picker.mark());
    stayShown(node, picker.root);
  },
  /** The page has gone back to a graph whose outputs it kept. */
  onNodeOutputsUpdated() {
    for (const node of everyNode()) pickers.get(node)?.show(lastShown(node)?.faces ?? []);
  },
});
