/** Building blocks of the editors on nodes: elements, their styles, and a function that writes a
 * widget. No side effects on import. */
import { app } from "../../scripts/app.js";

/** @param {string} tag
 * @param {string} className
 * @param {HTMLElement} [parent] */
export function element(tag, className, parent, attributes = {}) {
  const made = document.createElement(tag);
  made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent?.append(made);
  return made;
}

/** Put a style on the page, once.
 * @param {string} id
 * @param {string} text */
export function addStyle(id, text) {
  if (document.getElementById(id)) return;
  element("style", "", document.head, { id }).textContent = text;
}

/** Call `then` after whatever is called by this name already.
 * @param {any} object
 * @param {string} name
 * @param {(...given: any[]) => void} then gets what that got */
export function after(object, name, then) {
  const earlier = object[name];
  object[name] = function () {
    const result = earlier?.apply(this, arguments);
    then(...arguments);
    return result;
  };
}

/** Write a widget as a person would: others hear of it, and it is one step that can be undone.
 * @param {any} widget
 * @param {string | number} value */
export function setWidget(widget, value) {
  widget.value = value;
  widget.callback?.(value);
  app.graph.setDirtyCanvas(true, true);
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  if (tracker?.captureCanvasState) tracker.captureCanvasState(); // newer frontends name it so, and warn of the other
  else tracker?.checkState?.();
}
