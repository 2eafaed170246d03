/** Undo recreates a node under its old id, and Nodes 2.0 then keeps showing the elements of the old
 * node; this module fixes that. No side effects on import. */

/** Keep a node's own element on the page in the place of an earlier node's of the same number and class.
 * @param {any} node
 * @param {HTMLElement} element with a class of its own as its first */
export function stayShown(node, element) {
  const put = () => {
    const shown = document.querySelector(`[data-node-id="${node.id}"] .${element.classList[0]}`);
    if (shown && shown !== element) shown.replaceWith(element);
  };
  const earlier = node.onConfigure;
  node.onConfigure = function () {
    const result = earlier?.apply(this, arguments);
    put();
    requestAnimationFrame(() => requestAnimationFrame(put)); // in case the page put the old one there only now
    return result;
  };
}
