"""A node for tests and the demo: the small SDXL with random weights that the reference numbers were recorded on."""
from comfy_api.latest import ComfyExtension, io


class LoadTinyReferenceModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MMDiffLoadTinyReferenceModel", display_name="Load Tiny Reference Model (random weights)",
            category="MM-Diff/tests", inputs=[],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output(), io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls):
        from . import build
        return io.NodeOutput(build.model(), build.clip(), build.vae(), build.clip_vision())


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [LoadTinyReferenceModel]


async def comfy_entrypoint():
    return Extension()
