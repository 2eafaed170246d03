/** The page's own texts in ComfyUI's language. English is the key, so that code reads as it is shown; a text without an entry stays English.
 * tests/server/test_docs.py compares the entries with the calls. No graph: harmless wherever it is loaded. */
import { app } from "../../scripts/app.js";

/** By language; {name} is a place for a value. @type {Record<string, Record<string, string>>} */
const WORDS = {
  zh: {
    "Box of subject {label}": "主体 {label} 的方框",
    "Boxes.": "方框。",
    "Delete this box": "删除此方框",
    "Delete": "删除",
    "Drag to draw a box for the chosen subject; drag a box to move it, its handles to resize it.":
      "拖动鼠标，为所选主体画方框；拖动方框可移动，拖动控制点可调整大小。",
    "Drag to draw a box": "拖动鼠标画方框",
    "Earlier picture": "上一张图片",
    "face is connected: it is chosen there": "人脸序号已连接，由那个节点选择",
    "face {number} is used": "当前使用人脸 {number}",
    "Face {number} of {count}": "第 {number} 张人脸，共 {count} 张",
    "Face {number} of {count}, used in the last run": "第 {number} 张人脸，共 {count} 张，上次运行使用",
    "Faces found on the pictures": "图片中检测到的人脸",
    "Keys: 1-6 subject, arrows move, Shift+arrows resize, Delete removes, Tab next box, Enter new box, Escape lets go.":
      "按键：1-6 选择主体，方向键移动，Shift+方向键调整大小，Delete 删除，Tab 下一个方框，Enter 新建方框，Esc 取消选择。",
    "largest": "最大",
    "Next picture": "下一张图片",
    "next run: face {number}": "下次运行：人脸 {number}",
    "no such subject": "没有这个主体",
    "Picture {number} of {count}": "第 {number} 张图片，共 {count} 张",
    "Subject {number}": "主体 {number}",
    "Subject {number}: {name}": "主体 {number}：{name}",
    "The largest face of every picture (0)": "每张图片上最大的人脸（0）",
    "the number is for every picture, and picture {picture} has {count} face": "序号对所有图片有效，而图片 {picture} 只有 {count} 张人脸",
    "the number is for every picture, and picture {picture} has {count} faces": "序号对所有图片有效，而图片 {picture} 只有 {count} 张人脸",
    "The text of boxes cannot be read; drawing starts anew": "方框的文本无法读取；重新画即可",
    "there is no face {number} here": "这里没有人脸 {number}",
    "Use face {number}": "使用人脸 {number}",
    "{names} (step {step} of {steps})": "{names}（第 {step} 步，共 {steps} 步）",
    "{number} of {count}": "第 {number}/{count} 张",
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
