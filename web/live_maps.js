/** Shows the latest attention maps on MM-Diff Watch Attention while the sampler runs (its `live`
 * input). */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeOf } from "./last_shown.js";
import { stayShown } from "./stay_shown.js";
import { say } from "./words.js";

const HEIGHT = 150;

/** @typedef {{node: string, step: number, steps: number, names: string[], image: string}} LiveMaps */

app.registerExtension({
  name: "mmdiff.live",
  nodeCreated(node) {
    if (node.comfyClass !== "MMDiffWatchAttention") return;
    const frame = document.createElement("div");
    frame.className = "mmdiff-live";
    frame.style.cssText = "display:none;text-align:center;overflow:hidden;font-size:11px;opacity:0.9";
    const picture = document.createElement("img");
    picture.style.cssText = `max-width:100%;max-height:${HEIGHT - 28}px;image-rendering:pixelated`;
    const caption = document.createElement("div");
    frame.append(picture, caption);
    const shown = () => frame.style.display !== "none";
    const widget = node.addDOMWidget("live_maps", "MMDIFF_LIVE", frame, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => (shown() ? HEIGHT : 0),
    });
    widget.serialize = false;
    stayShown(node, frame);
    /** @param {LiveMaps} maps */
    node.showLiveMaps = (maps) => {
      const first = !shown();
      frame.style.display = "";
      picture.src = maps.image;
      const names = maps.names.join(", ");
      picture.alt = names;
      caption.textContent = say("{names} (step {step} of {steps})", { names, step: maps.step, steps: maps.steps });
      if (first) node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
    };
  },
  setup() {
    api.addEventListener("mmdiff.maps", (event) => nodeOf(event.detail.node)?.showLiveMaps?.(event.detail));
  },
});
