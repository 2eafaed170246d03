// What needs faces or a file: the tiny portrait model, a stand-in for the face detector.
add("load", "MMDiffLoad", 0, 0, { checkpoint: "tiny-portrait" });
add("faces", "MMDiffLoadFaceAnalysis", 0, 400, { model: "stand_in", device: "cpu" });
add("photo", "LoadImage", 600, 0, { image: photos[1] });
add("find", "MMDiffFindFaces", 1200, 0);
link("photo", 0, "find", "image");
link("faces", 0, "find", "faces");
add("show", "PreviewImage", 1200, 700);
link("find", 0, "show", "images");
add("convert", "MMDiffConvert", 1800, 0);
add("all", "MMDiffLoadModels", 3000, 0, {
  base_model: "sd_xl_base_1.0.safetensors", checkpoint: "portrait_generation",
  clip_vision: "clip-vit-large-patch14.safetensors", faces: "buffalo_l",
});
for (const name of ["convert", "all"]) nodes[name].mode = 2; // shown, not run
add("world", "MMDiffSmallWorldLoader", 1800, 400);
add("subject", "MMDiffLoadSubject", 2400, 0, { file: "help/Violet.safetensors" });
link("world", 4, "subject", "mmdiff");
add("seen", "PreviewImage", 2400, 600);
link("subject", 1, "seen", "images");
