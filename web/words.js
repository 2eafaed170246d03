/** The page's own texts in ComfyUI's language. English is the key, so that code reads as it is shown; a text without an entry stays English.
 * tests/test_docs.py compares the entries with the calls. No graph: harmless wherever it is loaded. */
import { app } from "../../scripts/app.js";

/** By language; {name} is a place for a value. @type {Record<string, Record<string, string>>} */
const WORDS = {
  zh: {
    "{names} (step {step} of {steps})": "{names}（第 {step} 步，共 {steps} 步）",
    "Box of subject {label}": "主体 {label} 的方框",
    "Boxes.": "方框。",
    "Delete": "删除",
    "Delete this box": "删除此方框",
    "Drag to draw a box": "拖动鼠标画方框",
    "Drag to draw a box for the chosen subject; drag a box to move it, its handles to resize it.":
      "拖动鼠标，为所选主体画方框；拖动方框可移动，拖动控制点可调整大小。",
    "Keys: 1-6 subject, arrows move, Shift+arrows resize, Delete removes, Tab next box, Enter new box, Escape lets go.":
      "按键：1-6 选择主体，方向键移动，Shift+方向键调整大小，Delete 删除，Tab 下一个方框，Enter 新建方框，Esc 取消选择。",
    "no such subject": "没有这个主体",
    "Subject {number}": "主体 {number}",
    "Subject {number}: {name}": "主体 {number}：{name}",
    "The text of boxes cannot be read; drawing starts anew": "方框的文本无法读取；重新画即可",
  },
};

/** "zh" of zh as of zh-TW; a page without the setting, or before it has loaded, is English. */
function language() {
  const set = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? app.ui?.settings?.getSettingValue?.("Comfy.Locale");
  return String(set ?? "en").split("-")[0];
}

/** A text as it is shown now; call it when showing, as settings load after modules.
 * @param {string} text in English, a literal
 * @param {Record<string, string | number>} [values] for the places in it */
export function say(text, values = {}) {
  return (WORDS[language()]?.[text] ?? text).replace(/\{(\w+)\}/g, (place, name) => String(values[name] ?? place));
}
