/** Boxes for the editor on Multi-Subject Constraint Masks: parsing, limits and moves. Pure
 * functions, no side effects on import.
 *
 * @typedef {{subject: number, x: number, y: number, width: number, height: number}} Box
 *   subject from 1; the rest in fractions of the image
 * @typedef {{x: number, y: number}} Point
 */

/** Subject 1 to 6; mmdiff_core/regions/preview.py has the same. */
export const COLOURS = ["#ff6b5e", "#4fa3ff", "#ffc53d", "#5fd17a", "#c584ff", "#3ad6d0"];
export const SMALLEST = 0.02;
/** Boxes on one node; mmdiff_core/regions/boxes.py has the same. */
export const MOST_BOXES = 100;
/** Characters that are still read, to say how many boxes there are. */
const LONGEST = 2_000_000;
const FIELDS = ["subject", "x", "y", "width", "height"];

/** @param {number} subject */
export const colourOf = (subject) => COLOURS[(subject - 1) % COLOURS.length];

/** @param {number} value */
const within = (value, least = 0, most = 1) => Math.min(Math.max(value, least), most);

/** @param {number} value */
const rounded = (value) => Math.round(value * 1e4) / 1e4;

/** The widget's text as boxes, or null where it is none that the editor can show (then the server says why).
 * @param {unknown} text
 * @returns {Box[] | null} */
export function parseBoxes(text) {
  if (String(text ?? "").length > LONGEST) return null;
  let found;
  try {
    found = JSON.parse(String(text ?? "").trim() || "[]");
  } catch {
    return null;
  }
  const isBox = (/** @type {any} */ box) => FIELDS.every((field) => Number.isFinite(box?.[field])) && box.width > 0 && box.height > 0;
  if (!Array.isArray(found) || !found.every(isBox)) return null;
  return found.map((box) => Object.fromEntries(FIELDS.map((field) => [field, box[field]])));
}

/** @param {Box[]} boxes */
export function writeBoxes(boxes) {
  return JSON.stringify(
    boxes.map(({ subject, x, y, width, height }) => {
      const [left, top, right, bottom] = [x, y, x + width, y + height].map(rounded);
      return { subject, x: left, y: top, width: rounded(right - left), height: rounded(bottom - top) };
    }),
  );
}

/** The box between two corners, in the picture.
 * @param {number} subject
 * @param {Point} from
 * @param {Point} to
 * @returns {Box} */
export function between(subject, from, to) {
  const [x1, x2] = [within(from.x), within(to.x)].sort((a, b) => a - b);
  const [y1, y2] = [within(from.y), within(to.y)].sort((a, b) => a - b);
  return { subject, x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
}

/** @param {Box} box */
export const isTooSmall = (box) => box.width < SMALLEST || box.height < SMALLEST;

/** The same box elsewhere; it stops at the picture's edges.
 * @param {Box} box
 * @param {number} dx
 * @param {number} dy
 * @returns {Box} */
export function moved(box, dx, dy) {
  return { ...box, x: within(box.x + dx, 0, 1 - box.width), y: within(box.y + dy, 0, 1 - box.height) };
}

/** The box with the named sides moved ("n", "se", ...); never smaller than SMALLEST, never outside.
 * @param {Box} box
 * @param {string} sides
 * @param {number} dx
 * @param {number} dy
 * @returns {Box} */
export function stretched(box, sides, dx, dy) {
  let [left, top, right, bottom] = [box.x, box.y, box.x + box.width, box.y + box.height];
  if (sides.includes("w")) left = within(left + dx, 0, right - SMALLEST);
  if (sides.includes("e")) right = within(right + dx, left + SMALLEST, 1);
  if (sides.includes("n")) top = within(top + dy, 0, bottom - SMALLEST);
  if (sides.includes("s")) bottom = within(bottom + dy, top + SMALLEST, 1);
  return { ...box, x: left, y: top, width: right - left, height: bottom - top };
}
