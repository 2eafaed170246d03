// The small world: everything from photos to attention maps. `add` and `link` come from
// support/page_graphs.py.
const column = (i) => i * 600;
add("world", "MMDiffSmallWorldLoader", column(0), 0);
add("sprite0", "MMDiffSmallWorldSprite", column(1), 0, {
  kind: "ghost", first_colour: 0.74, second_colour: 0.17, pattern: "stripes", eyes: "white",
  accessory: "crown", references: 1,
});
add("sprite1", "MMDiffSmallWorldSprite", column(1), 900, {
  kind: "ghost", first_colour: 0.5, second_colour: 0.84, pattern: "bars", eyes: "dark",
  accessory: "bow", references: 1,
});
for (const [i, name] of ["Violet", "Teal"].entries()) {
  add(`subject${i}`, "MMDiffSubjectEncoder", column(2), i * 900, { name });
  link("world", 4, `subject${i}`, "mmdiff");
  link("world", 3, `subject${i}`, "clip_vision");
  link(`sprite${i}`, 0, `subject${i}`, "image");
}
link("subject0", 0, "subject1", "subjects");
add("save", "MMDiffSaveSubject", column(3), 0, { prefix: "help/", overwrite: true });
link("subject1", 0, "save", "subjects");
add("weights", "MMDiffSubjectWeights", column(3), 600, { name: "Teal", weight: 1.0 });
link("save", 0, "weights", "subjects");
add("mix", "MMDiffMixSubjects", column(3), 1200, { weights: "0.7, 0.3" });
link("subject1", 0, "mix", "subjects");
const boxes = JSON.stringify([
  { subject: 1, x: 0.04, y: 0.3, width: 0.4, height: 0.62 },
  { subject: 2, x: 0.56, y: 0.3, width: 0.4, height: 0.62 },
]);
add("masks", "MMDiffConstraintMasks", column(4), 0, { width: 128, height: 128, boxes });
link("weights", 0, "masks", "subjects");
add("find", "MMDiffFindRegions", column(4), 1400);
link("weights", 0, "find", "subjects");
const text = "a ghost<|violet|> and a ghost<|teal|> on the beach";
add("text", "MMDiffTextEncode", column(5), 0, { text, negative: "" });
link("weights", 0, "text", "subjects");
link("world", 1, "text", "clip");
link("world", 4, "text", "mmdiff");
add("apply", "MMDiffApplyAttention", column(5), 900, { fuse_scale: 1.0 });
link("world", 0, "apply", "model");
link("world", 4, "apply", "mmdiff");
add("watch", "MMDiffWatchAttention", column(5), 1500, { live: true });
link("apply", 0, "watch", "model");
add("latent", "EmptyLatentImage", column(6), 0, { width: 128, height: 128 });
add("sample", "KSampler", column(6), 300, {
  seed: 14, control_after_generate: "fixed", steps: 20, cfg: 3, sampler_name: "euler_ancestral",
  scheduler: "sgm_uniform",
});
link("watch", 0, "sample", "model");
link("text", 0, "sample", "positive");
link("text", 1, "sample", "negative");
link("latent", 0, "sample", "latent_image");
add("decode", "VAEDecode", column(6), 800);
link("sample", 0, "decode", "samples");
link("world", 2, "decode", "vae");
add("maps", "MMDiffAttentionMaps", column(7), 0);
link("watch", 1, "maps", "maps");
link("decode", 0, "maps", "image");
// four images of one batch, scored
add("four", "EmptyLatentImage", column(6), 1200, { width: 128, height: 128, batch_size: 4 });
add("sample4", "KSampler", column(6), 1500, {
  seed: 14, control_after_generate: "fixed", steps: 20, cfg: 3, sampler_name: "euler_ancestral",
  scheduler: "sgm_uniform",
});
link("apply", 0, "sample4", "model");
link("text", 0, "sample4", "positive");
link("text", 1, "sample4", "negative");
link("four", 0, "sample4", "latent_image");
add("decode4", "VAEDecode", column(6), 2000);
link("sample4", 0, "decode4", "samples");
link("world", 2, "decode4", "vae");
add("likeness", "MMDiffLikeness", column(7), 900);
link("decode4", 0, "likeness", "image");
link("weights", 0, "likeness", "subjects");
link("world", 4, "likeness", "mmdiff");
add("best", "MMDiffPickBest", column(7), 1800, { keep: 2 });
link("decode4", 0, "best", "images");
link("likeness", 0, "best", "scores");
link("sample4", 0, "best", "latents");
add("given0", "PreviewImage", column(8), 1200);
link("sprite0", 0, "given0", "images");
add("given1", "PreviewImage", column(8), 1800);
link("sprite1", 0, "given1", "images");
add("drawn", "PreviewImage", column(8), 2400);
link("decode", 0, "drawn", "images");
add("strip", "PreviewImage", column(8), 0);
link("maps", 2, "strip", "images");
add("regions", "PreviewImage", column(8), 600);
link("masks", 1, "regions", "images");
add("doctor", "MMDiffDoctor", column(9), 0);
