"""Socket types of the pack. A socket carries an object, never a dict."""

from comfy_api.latest import io

MMDiff = io.Custom("MMDIFF")  # mmdiff_core.host.models.LoadedMMDiff
MMDiffSubjects = io.Custom("MMDIFF_SUBJECTS")  # tuple of mmdiff_core.method.subjects.PromptSubject
MMDiffFaces = io.Custom("MMDIFF_FACES")  # mmdiff_core.references.faces.FaceAnalyser
MMDiffMaps = io.Custom("MMDIFF_MAPS")  # mmdiff_core.host.watch.Recorder
MMDiffScores = io.Custom("MMDIFF_SCORES")  # mmdiff_core.evaluation.picking.BatchLikeness
BoundingBox = io.Custom(
    "BOUNDING_BOX"
)  # the host's: {x, y, width, height} in pixels, or lists of them
SOCKET = {
    "forceInput": True
}  # newer web pages would make a widget of a BOUNDING_BOX input and send its 512 x 512 box unasked

CATEGORY = "MM-Diff"
