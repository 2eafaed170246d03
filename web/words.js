/** Translations of the texts that the web page itself shows. The English text is the key, so the
 * code reads as it is shown; a text without an entry stays English. tests/server/test_docs.py
 * compares the entries with the calls. */
import { app } from "../../scripts/app.js";

/** By language; {name} is a placeholder. @type {Record<string, Record<string, string>>} */
const WORDS = {
  zh: {
    "Box of subject {label}": "主体 {label} 的方框",
    "Boxes.": "方框。",
    "Copied": "已复制",
    "Copy": "复制",
    "Delete this box": "删除此方框",
    "Delete": "删除",
    "Drag to draw a box for the selected subject; drag a box to move it, its handles to resize it.":
      "拖动鼠标，为所选主体画方框；拖动方框可移动，拖动控制点可调整大小。",
    "Drag to draw a box": "拖动鼠标画方框",
    "Previous image": "上一张图像",
    "face is connected; choose it there": "人脸序号已连接，请在那个节点选择",
    "face {number} is used": "当前使用人脸 {number}",
    "Face {number} of {count}": "第 {number} 张人脸，共 {count} 张",
    "Face {number} of {count}, used in the last run": "第 {number} 张人脸，共 {count} 张，上次运行使用",
    "Faces found in the images": "图像中检测到的人脸",
    "Keys: 1-6 select a subject, arrows move, Shift+arrows resize, Delete removes, Tab next box, Enter new box, Escape deselects.":
      "按键：1-6 选择主体，方向键移动，Shift+方向键调整大小，Delete 删除，Tab 下一个方框，Enter 新建方框，Esc 取消选择。",
    "largest": "最大",
    "missing": "缺少",
    "Next image": "下一张图像",
    "next run: face {number}": "下次运行：人脸 {number}",
    "no such subject": "没有这个主体",
    "Not copied: {reason}": "未能复制：{reason}",
    "note": "注意",
    "ok": "正常",
    "No subject is connected. Connect MM-Diff Subject Encoder to subjects, then draw its box.":
      "没有连接主体。请先把“MM-Diff 主体编码器”连接到 subjects，再画方框。",
    "There is no subject {number}; connected: {names}. Chain another MM-Diff Subject Encoder to add one.":
      "没有主体 {number}；已连接：{names}。要增加主体，请再串联一个“MM-Diff 主体编码器”。",
    "Image {number} of {count}": "第 {number} 张图像，共 {count} 张",
    "Run this node to see its report.": "运行此节点即可查看报告。",
    "Subject {number}": "主体 {number}",
    "Subject {number}: {name}": "主体 {number}：{name}",
    "The largest face of each image (0)": "每张图像上最大的人脸（0）",
    "the number applies to all images, but image {picture} has only {count} face": "序号对所有图像有效，而图像 {picture} 只有 {count} 张人脸",
    "the number applies to all images, but image {picture} has only {count} faces": "序号对所有图像有效，而图像 {picture} 只有 {count} 张人脸",
    "The boxes text is not valid; drawing replaces it": "boxes 的文本无效；绘制会替换它",
    "{count} boxes are too many, at most {most}; drawing replaces them": "{count} 个方框太多，最多 {most} 个；绘制会替换它们",
    "{most} boxes; delete one to draw another": "已有 {most} 个方框；先删除一个再画",
    "there is no face {number} in this image": "这张图像中没有人脸 {number}",
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
 * @param {Record<string, string | number>} [values] for its placeholders */
export function say(text, values = {}) {
  return (WORDS[language()]?.[text] ?? text).replace(/\{(\w+)\}/g, (place, name) => String(values[name] ?? place));
}
